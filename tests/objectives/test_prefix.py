"""Prefix language modelling: worked example, splits, the causal identity."""

import jax
import numpy as np
import pytest

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer
from lm.objectives import layout, prefix

BOS, EOS, MASK = tokenizer.BOS, tokenizer.EOS, tokenizer.MASK


def record(ids):
  ids = np.array(ids, np.int32)
  return types.Record(ids_L=ids, word_L=np.arange(len(ids), dtype=np.int32))


def make(config, **fields):
  config.objective.name = 'prefix'
  for name, value in fields.items():
    section = {'inputs': config.objective, 'architecture': config.model}
    section.get(name, config.objective.prefix)[name] = value
  return objectives.make(config_lib.resolve(config))


def test_example_of_the_docstring(config):
  objective = make(config, split='fixed', share=0.4)
  (example,) = objective.corrupt(
    record([10, 11, 12, 13, EOS]), np.random.default_rng(0)
  )
  assert example.tokens_L.tolist() == [BOS, 10, 11, 12, 13]
  assert example.targets_L.tolist() == [10, 11, 12, 13, EOS]
  assert example.weights_L.tolist() == [0, 0, 1, 1, 1]
  assert example.order_L.tolist() == [0, 0, 0, 1, 2]


def test_layouts_of_the_docstrings():
  inputs, targets = np.array([10, 11]), np.array([12, 13, EOS])
  one = layout.decoder(inputs, targets)
  assert one.tokens_L.tolist() == [BOS, 10, 11, 12, 13]
  assert one.targets_L.tolist() == [10, 11, 12, 13, EOS]
  assert one.weights_L.tolist() == [0, 0, 1, 1, 1]
  assert one.order_L.tolist() == [0, 0, 0, 1, 2]
  one = layout.causal_decoder(inputs, targets)
  assert one.order_L.tolist() == [0, 1, 2, 3, 4]
  one = layout.encoder(
    np.array([10, 11, EOS]), np.array([MASK, 11, EOS]), np.array([1, 0, 0])
  )
  assert one.tokens_L.tolist() == [BOS, MASK, 11, EOS]
  assert one.targets_L.tolist() == [BOS, 10, 11, EOS]
  assert one.weights_L.tolist() == [0, 1, 0, 0]
  assert one.order_L.tolist() == [0, 0, 0, 0]
  one = layout.encoder_decoder(inputs, targets)
  assert one.encoder_tokens_M.tolist() == [BOS, 10, 11]
  assert one.tokens_L.tolist() == [BOS, 12, 13]
  assert one.targets_L.tolist() == [12, 13, EOS]
  assert one.weights_L.tolist() == [1, 1, 1]
  assert one.order_L.tolist() == [0, 1, 2]


def test_splits_are_uniform_and_leave_a_token():
  rng = np.random.default_rng(0)
  places = [prefix.split(5, rng, None) for _ in range(10_000)]
  counts = np.bincount(places, minlength=5)
  assert len(counts) == 5
  # Five standard deviations of a binomial.
  np.testing.assert_allclose(counts, 2000, atol=200)
  for n in range(1, 40):
    assert prefix.split(n, rng, 0.75) == min(round(0.75 * n), n - 1)


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
@pytest.mark.parametrize('split', ['uniform', 'fixed'])
def test_every_chunk_fits_a_row_and_its_size_is_told(
  config, architecture, split
):
  share = {'share': 0.75} if split == 'fixed' else {}
  objective = make(config, architecture=architecture, split=split, **share)
  capacity = objective.capacity
  assert capacity.positions == config.data.sequence_length
  for n in range(1, objective.raw_length + 1):
    for seed in range(10):
      (size,) = objective.sizes(n, np.random.default_rng(seed))
      (example,) = objective.corrupt(
        record(range(300, 300 + n)), np.random.default_rng(seed)
      )
      assert size.tokens == len(example.tokens_L) <= capacity.tokens
      assert size.predictions == np.sum(example.weights_L > 0)
      if capacity.predictions:
        assert size.predictions <= capacity.predictions
      if architecture == 'encoder_decoder':
        assert size.encoder_tokens == len(example.encoder_tokens_M)
        assert size.encoder_tokens <= capacity.encoder_tokens


def test_an_empty_prefix_is_the_causal_objective(config):
  ids = np.random.default_rng(0).integers(270, 526, 20)
  config.objective.name = 'causal'
  causal = objectives.make(config_lib.resolve(config))
  empty = make(config, split='fixed', share=0.0)
  values = []
  for objective in (causal, empty):
    examples = objective.corrupt(record(ids), np.random.default_rng(0))
    batch = packing.stack([packing.pack(examples, objective.capacity)])
    model = models.make(config_lib.resolve(config), objective)
    params = model.init(jax.random.PRNGKey(0))
    terms = objective.loss(model, params, batch, None, False)
    values.append(next(iter(terms.values())))
  assert float(values[0][1]) == float(values[1][1]) == 20
  np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
