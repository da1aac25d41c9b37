"""Next-token prediction: the worked example, no leak, unpacked = packed."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import docstrings

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing
from lm.models import attention
from lm.objectives import causal


def record(ids):
  ids = np.array(ids, np.int32)
  return types.Record(ids_L=ids, word_L=np.arange(len(ids), dtype=np.int32))


def test_example_of_the_docstring(config):
  objective = objectives.make(config_lib.resolve(config))
  shown = docstrings.example(causal.corrupt)
  (example,) = objective.corrupt(record(shown['ids']), None)
  docstrings.check(example, shown)
  (size,) = objective.sizes(len(shown['ids']), np.random.default_rng(0))
  assert size == types.Size(tokens=len(shown['tokens']))


def test_static_attention_is_that_of_the_order(config):
  objective = objectives.make(config_lib.resolve(config))
  (example,) = objective.corrupt(record(range(9)), np.random.default_rng(0))
  order, segment = example.order_L[None], np.ones((1, 9), np.int32)
  mask = attention.attention_mask(order, order, segment, segment)[0]
  causal = {'causal': np.tril(np.ones((9, 9), bool))}
  np.testing.assert_array_equal(mask, causal[objective.attention])


def test_a_loss_sees_what_it_may_and_nothing_else(config):
  """Each position's loss alone, when each other token is changed."""
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  model = models.make(config, objective)
  params = model.init(jax.random.PRNGKey(0))
  rng = np.random.default_rng(0)
  lengths = (6, 5)
  examples = [
    objective.corrupt(record(rng.integers(270, 526, n)), rng)[0]
    for n in lengths
  ]
  row = packing.pack(examples, types.Size(12))
  batch = packing.stack([row] * 12)
  # Row i of the batch has the loss of position i only.
  batch = types.Batch(**{**vars(batch), 'weights_BxL': np.diag(row['weights'])})

  @jax.jit
  def losses(tokens_BxL):
    changed = types.Batch(**{**vars(batch), 'tokens_BxL': tokens_BxL})
    hidden = model.hidden(params, changed)
    from lm.objectives import cross_entropy as losses_lib

    nll = losses_lib.cross_entropy(
      model.logits(params, hidden), changed.targets_BxL
    )
    return jnp.sum(nll * changed.weights_BxL, axis=1)

  before = np.asarray(losses(batch.tokens_BxL))
  for changed in range(sum(lengths)):
    tokens = batch.tokens_BxL.copy()
    tokens[:, changed] = 300 if tokens[0, changed] != 300 else 301
    same = np.asarray(losses(tokens)) == before
    segment = row['segment']
    for i in range(sum(lengths)):
      sees = segment[i] == segment[changed] and changed <= i
      assert same[i] != sees, (i, changed)


def test_loss_is_the_sum_over_targets_and_their_number(config):
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  model = models.make(config, objective)
  params = model.init(jax.random.PRNGKey(0))
  rng = np.random.default_rng(0)
  (example,) = objective.corrupt(record(rng.integers(270, 526, 20)), rng)
  batch = packing.stack([packing.pack([example], types.Size(32))])
  total, weight = objective.loss(model, params, batch, None, False)['causal']
  logits = model.logits(params, model.hidden(params, batch))
  log_p = jax.nn.log_softmax(logits)[0, np.arange(20), example.targets_L]
  assert weight == 20
  np.testing.assert_allclose(total, -np.sum(log_p), rtol=1e-5)
