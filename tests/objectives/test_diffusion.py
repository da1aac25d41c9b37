"""Masked diffusion: the estimators are unbiased, and bound the likelihood."""

import itertools
import math

import jax
import numpy as np
import pytest
from helpers import docstrings, noise

from lm import objectives, types
from lm.config import resolve as config_lib
from lm.data import mixture, packing, tokenizer
from lm.objectives import diffusion

BOS, EOS, MASK = tokenizer.BOS, tokenizer.EOS, tokenizer.MASK
NUM_SPECIAL = tokenizer.NUM_SPECIAL


def make(config, **fields):
  config.objective.name = 'diffusion'
  config.objective.diffusion.update(fields)
  return objectives.make(config_lib.resolve(config))


def masked_at(example):
  return tuple(np.flatnonzero(example.weights_L).tolist())


def test_examples_of_the_docstrings(config):
  objective = make(config)
  shown = docstrings.example(diffusion.corrupt)
  record = noise.record(shown['ids'])
  drawn = [
    objective.corrupt(record, np.random.default_rng(seed))[0]
    for seed in range(100)
  ]
  one = next(
    example
    for example in drawn
    if np.array_equal(example.tokens_L, shown['tokens'])
  )
  docstrings.check(one, shown)
  shown = docstrings.example(diffusion.noised)
  one = diffusion.noised(shown['context'], shown['scored'], shown['masked'])
  docstrings.check(one, shown)


@pytest.mark.parametrize('estimator', diffusion.ESTIMATORS)
def test_text_alone_is_masked_and_what_is_not_is_read(config, estimator):
  objective = make(config, estimator=estimator)
  rng = np.random.default_rng(0)
  for record in noise.chunks(2000):
    before = record.ids_L.copy()
    (example,) = objective.corrupt(record, rng)
    assert np.array_equal(record.ids_L, before)
    ids = np.array([BOS, *record.ids_L])
    assert np.array_equal(example.targets_L, ids)
    hidden = example.weights_L > 0
    assert np.all(ids[hidden] >= NUM_SPECIAL)
    assert np.all(example.tokens_L[hidden] == MASK)
    assert np.array_equal(example.tokens_L[~hidden], ids[~hidden])
    weights = set(example.weights_L[hidden].tolist())
    total = int(np.sum(ids >= NUM_SPECIAL))
    if estimator == 'exact' and total:
      assert weights == {np.float32(total / np.sum(hidden))}
    if estimator == 'bernoulli' and weights:
      assert weights == {np.float32(1 / diffusion.time(record.place, 1e-3))}
    (size,) = objective.sizes(len(record.ids_L), rng)
    assert size.tokens == len(ids)
    assert size.predictions >= np.sum(hidden)


def test_the_exact_number_is_uniform_and_so_are_the_sets_of_it(config):
  objective = make(config)
  record = noise.record([300, 301, 302, 303, EOS])
  rng = np.random.default_rng(0)
  drawn = [objective.corrupt(record, rng)[0] for _ in range(10_000)]
  sets = [masked_at(example) for example in drawn]
  for masked in range(1, 5):
    for places in itertools.combinations(range(1, 5), masked):
      p = 1 / 4 / math.comb(4, masked)
      deviation = math.sqrt(10_000 * p * (1 - p))
      assert abs(sets.count(places) - 10_000 * p) < 5 * deviation
  weights = np.array([example.weights_L[1:5] for example in drawn])
  # 1 on average for each token: the square is L / l on average.
  variance = np.mean([4 / masked for masked in range(1, 5)]) - 1
  np.testing.assert_allclose(
    np.mean(weights, axis=0), 1, atol=5 * math.sqrt(variance / 10_000)
  )


def test_each_token_is_masked_with_the_probability_of_the_weight(config):
  objective = make(config, estimator='bernoulli', epsilon=0.01)
  rng = np.random.default_rng(0)
  count, expected, variance, weights = 0, 0.0, 0.0, []
  for place in range(10_000):
    record = noise.record([300, 301, 302, 303, EOS], place=place)
    (example,) = objective.corrupt(record, rng)
    t = diffusion.time(place, 0.01)
    assert 0.01 <= t < 1
    count += np.sum(example.weights_L > 0)
    expected += 4 * t
    variance += 4 * t * (1 - t)
    weights.append(example.weights_L[1:5])
  assert abs(count - expected) < 5 * math.sqrt(variance)
  # The square of a token's weight is 1 / t on average.
  squares = math.log(1 / 0.01) / 0.99 - 1
  np.testing.assert_allclose(
    np.mean(weights, axis=0), 1, atol=5 * math.sqrt(squares / 10_000)
  )


def test_shares_are_even_over_neighbours_and_uniform_for_a_text(config):
  epsilon = 1e-3
  for first in range(0, 10_000, 37):
    run = [diffusion.time(first + i, epsilon) for i in range(16)]
    u = np.sort((np.array(run) - epsilon) / (1 - epsilon))
    # Numbers drawn apart leave gaps of 0.2 on average.
    assert np.max(np.diff([*u, 1 + u[0]])) < 1.5 / 16
  # The only chunk of a corpus, epoch by epoch.
  config.objective.name = 'diffusion'
  objective = make(config, estimator='bernoulli')
  spans = mixture.Ranges(
    document=np.zeros(1, np.int64),
    start=np.zeros(1, np.int64),
    stop=np.full(1, 9),
  )
  places = [
    packing.EpochPlan(spans, objective, seed=0, epoch=epoch).place[0]
    for epoch in range(1000)
  ]
  u = [(diffusion.time(place, epsilon) - epsilon) / 0.999 for place in places]
  counts, _ = np.histogram(u, 10, (0, 1))
  np.testing.assert_allclose(counts, 100, atol=5 * math.sqrt(90))


def test_an_example_is_a_function_of_the_record_and_the_generator(config):
  for estimator in diffusion.ESTIMATORS:
    objective = make(config, estimator=estimator)
    record = noise.record(np.arange(300, 350), place=3)
    first, again, other = (
      objective.corrupt(record, np.random.default_rng(seed))[0]
      for seed in (1, 1, 2)
    )
    for name in ('tokens_L', 'targets_L', 'weights_L', 'order_L'):
      assert np.array_equal(getattr(first, name), getattr(again, name))
    assert masked_at(first) != masked_at(other)


@pytest.mark.parametrize('estimator', diffusion.ESTIMATORS)
def test_a_text_without_a_token_to_mask(config, estimator):
  objective = make(config, estimator=estimator)
  (example,) = objective.corrupt(noise.record([EOS]), np.random.default_rng(0))
  assert example.tokens_L.tolist() == [BOS, EOS]
  assert not example.weights_L.any()
  model, params = noise.initialized(config_lib.resolve(config), objective)
  batch = packing.stack([packing.pack([example], objective.capacity)])
  assert noise.term(objective, model, params, batch) == (
    'diffusion',
    0,
    0,
  )


@pytest.mark.parametrize('estimator', diffusion.ESTIMATORS)
def test_rows_hold_all_of_an_epoch(config, tmp_path, estimator):
  config.data.sequence_length = 64
  objective = make(config, estimator=estimator)
  shared, read = noise.check_rows(objective, tmp_path)
  assert 0.45 < shared / read < 0.6


def test_the_normaliser_is_the_number_of_maskable_tokens(config):
  """Not the sum of the weights; of two packed texts and padding."""
  objective = make(config, estimator='bernoulli')
  rng = np.random.default_rng(0)
  examples = [
    objective.corrupt(noise.record(ids, place=place), rng)[0]
    for place, ids in ((2, [*range(300, 312), EOS]), (4, range(320, 328)))
  ]
  batch = packing.stack([packing.pack(examples, objective.capacity)])
  assert np.sum(batch.segment_BxL == 0) > 0
  model, params = noise.initialized(config_lib.resolve(config), objective)
  name, total, weight = noise.term(objective, model, params, batch)
  assert (name, weight) == ('diffusion', 12 + 8)
  assert abs(np.sum(batch.weights_BxL) - 20) > 0.5
  nll_BxL = noise.token_losses(model, params, batch)
  np.testing.assert_allclose(
    total, np.sum(nll_BxL * batch.weights_BxL), rtol=1e-5
  )


class Tiny:
  """A small model, and its losses for every set of masked tokens of a text."""

  def __init__(self, config, ids):
    config.model.num_layers = 1
    self.objective = make(config)
    self.ids = np.array(ids)
    self.model, self.params = noise.initialized(
      config_lib.resolve(config), self.objective
    )
    # As drawn, all is about as likely, whatever stands around it.
    trunk = self.params['trunk']
    trunk['embeddings'] = jax.tree.map(lambda x: 30 * x, trunk['embeddings'])
    trunk['layers'] = jax.tree.map(lambda x: 3 * x, trunk['layers'])
    L = len(ids)
    self.sets = [
      places
      for masked in range(1, L + 1)
      for places in itertools.combinations(range(L), masked)
    ]
    examples = [
      diffusion.noised(ids[:0], self.ids, np.isin(np.arange(L), places))
      for places in self.sets
    ]
    nll_BxL = noise.token_losses(self.model, self.params, self.batch(examples))
    # The loss of the token at each place, by what is masked.
    self.nll = {
      places: np.asarray(row, np.float64)[1 : L + 1]
      for places, row in zip(self.sets, nll_BxL, strict=False)
    }

  def batch(self, examples):
    """One a row; of one shape for all L, to be compiled once."""
    rows = [[example] for example in examples]
    rows += [[]] * (31 - len(rows))
    return packing.stack([packing.pack(r, types.Size(tokens=6)) for r in rows])

  def of_orders(self):
    """-log p of the text, told in each of the L! orders."""
    L = len(self.ids)
    found = []
    for order in itertools.permutations(range(L)):
      hidden = [tuple(sorted(order[done:])) for done in range(L)]
      steps = zip(hidden, order, strict=True)
      found.append(sum(self.nll[places][told] for places, told in steps))
    return np.array(found)


@pytest.mark.parametrize('L', [1, 2, 3, 4, 5])
def test_the_exact_estimator_averages_to_a_bound(config, L):
  """At least -log of the mixture of all orders; their mean of -log p.

  Each l and each set of l is drawn by `corrupt` and goes through the loss, with
  the probability that it has.
  """
  ids = np.random.default_rng(L).integers(NUM_SPECIAL, 526, L)
  tiny = Tiny(config, ids)
  rng = np.random.default_rng(0)
  drawn = {}
  while len(drawn) < 2**L - 1:
    (example,) = tiny.objective.corrupt(noise.record(ids), rng)
    drawn[masked_at(example)] = example
  batch = tiny.batch(drawn.values())
  for weights_L, places in zip(batch.weights_BxL, drawn, strict=False):
    weights_L /= L * math.comb(L, len(places))
  _, bound, weight = noise.term(tiny.objective, tiny.model, tiny.params, batch)
  assert weight == len(drawn) * L
  of_orders = tiny.of_orders()
  assert len(of_orders) == math.factorial(L)
  np.testing.assert_allclose(bound, np.mean(of_orders), rtol=1e-5)
  exact = -np.log(np.mean(np.exp(-of_orders)))
  if L == 1:
    np.testing.assert_allclose(bound, exact, rtol=1e-5)
  else:
    assert bound > exact + 1e-2


def test_the_bernoulli_estimator_averages_to_the_bound_but_for_epsilon(config):
  L, epsilon = 4, 1e-3
  # A token that stands around it is likely: the fewer masked, the less lost.
  ids = np.full(L, 300)
  tiny = Tiny(config, ids)
  bound = np.mean(tiny.of_orders())
  t = np.array([diffusion.time(place, epsilon) for place in range(2**15)])
  average = sum(
    np.mean(t ** len(places) * (1 - t) ** (L - len(places)) / t)
    * sum(tiny.nll[places][i] for i in places)
    for places in tiny.sets
  )
  # Far less than epsilon of it, which is the most.
  np.testing.assert_allclose(average, bound, rtol=epsilon / 10)


@pytest.mark.parametrize('estimator', diffusion.ESTIMATORS)
def test_what_is_read_says_nothing_of_what_is_masked(config, estimator):
  objective = make(config, estimator=estimator)
  tried = 0
  for seed, record in enumerate(noise.chunks(100, most=30)):
    (example,) = objective.corrupt(record, np.random.default_rng(seed))
    for place in masked_at(example):
      ids = record.ids_L.copy()
      ids[place - 1] ^= 1  # another byte
      other = noise.record(ids, record.word_L, record.place)
      (changed,) = objective.corrupt(other, np.random.default_rng(seed))
      assert np.array_equal(changed.tokens_L, example.tokens_L)
      assert np.flatnonzero(changed.targets_L != example.targets_L) == place
      tried += 1
  assert tried > 200
