"""Next-token prediction: the worked example, and the loss written out."""

import jax
import numpy as np
from helpers import docstrings

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing
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


def test_loss_is_the_sum_over_targets_and_their_number(config):
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  model = models.make(config, objective)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  rng = np.random.default_rng(0)
  (example,) = objective.corrupt(record(rng.integers(270, 526, 20)), rng)
  batch = packing.stack([packing.pack([example], types.Size(32))])
  total, weight = objective.loss(model, params, batch, None, False)['causal']
  logits = model.logits(params, model.hidden(params, batch))
  log_p = jax.nn.log_softmax(logits)[0, np.arange(20), example.targets_L]
  assert weight == 20
  np.testing.assert_allclose(total, -np.sum(log_p), rtol=1e-5)
