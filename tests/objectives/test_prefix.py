"""Prefix language modelling: worked example, splits, the causal identity."""

import jax
import numpy as np
import pytest
from helpers import docstrings

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
  pair, on_a_decoder = docstrings.examples(prefix.split_pair)
  share = len(pair['inputs']) / len(pair['ids'])
  objective = make(config, split='fixed', share=share)
  one = record(pair['ids'])
  found = prefix.split_pair(one, None, share=share)
  np.testing.assert_array_equal(found[0], pair['inputs'])
  np.testing.assert_array_equal(found[1], pair['targets'])
  (example,) = objective.corrupt(one, None)
  docstrings.check(example, on_a_decoder)


@pytest.mark.parametrize(
  'make_example',
  [layout.decoder, layout.causal_decoder, layout.encoder_decoder],
)
def test_layouts_of_the_docstrings(make_example):
  given, shown = docstrings.examples(make_example)
  docstrings.check(make_example(given['inputs'], given['targets']), shown)


def test_the_encoders_layout_of_the_docstring():
  given, shown = docstrings.examples(layout.encoder)
  docstrings.check(layout.encoder(*given.values()), shown)


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
def test_every_chunk_fits_a_row_and_its_size_is_reported(
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
    params = jax.jit(model.init)(jax.random.PRNGKey(0))
    terms = objective.loss(model, params, batch, None, False)
    values.append(next(iter(terms.values())))
  assert float(values[0][1]) == float(values[1][1]) == 20
  np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
