"""Masked language modelling: what is chosen, what is read, what is seen."""

import numpy as np
import pytest
from helpers import docstrings, noise

from lm import objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer as tokenizer_lib
from lm.objectives import layout, masked, masking

BOS, EOS, MASK = tokenizer_lib.BOS, tokenizer_lib.EOS, tokenizer_lib.MASK
NUM_SPECIAL = tokenizer_lib.NUM_SPECIAL


def make(config, tokenizer=None, **fields):
  config.objective.name = 'masked'
  config.objective.masked.update(fields)
  return objectives.make(config_lib.resolve(config), tokenizer)


def predicted(example):
  return np.flatnonzero(example.weights_L)


def test_example_of_the_docstring(config):
  objective = make(config, rate=0.5)
  shown = docstrings.example(masked.corrupt)
  record = noise.record(shown['ids'])
  drawn = [
    objective.corrupt(record, np.random.default_rng(seed))[0]
    for seed in range(300)
  ]
  one = next(
    example
    for example in drawn
    if np.array_equal(example.tokens_L, shown['tokens'])
    and np.array_equal(example.weights_L, shown['weights'])
  )
  docstrings.check(one, shown)


def test_parts_of_the_docstrings():
  shown = docstrings.example(masking.maskable)
  np.testing.assert_array_equal(masking.maskable(shown['ids']), shown['->'])
  given, shown = docstrings.examples(masking.example)
  one = masking.example(
    given['ids'], given['places'], weight=2.0, read=given['read']
  )
  docstrings.check(one, shown)
  assert [masked.count(n, 0.15) for n in (0, 3, 10, 255)] == [0, 1, 2, 38]
  shown = docstrings.example(masked.fill)
  found = masked.fill(shown['bounds'], shown['order'], 3)
  np.testing.assert_array_equal(found, shown['->'])
  shown = docstrings.example(masked.cover)
  found = masked.cover(shown['bounds'], shown['order'], shown['lengths'], 5)
  np.testing.assert_array_equal(found, shown['->'])


def test_scored_examples_of_the_docstrings(config):
  objective = make(config)
  shown = docstrings.example(masked.continuation)
  one = objective.continuation(shown['context'], shown['scored'])
  docstrings.check(one, shown)
  assert objective.scored_at_once == 1
  with pytest.raises(ValueError, match='1 token at a time, not 2'):
    objective.continuation(np.array([300]), np.array([301, 302]))
  shown = docstrings.example(masked.one_masked)
  one = masked.one_masked(shown['context'], shown['scored'], 1)
  docstrings.check(one, shown)


@pytest.mark.parametrize('rate', [0.15, 0.5, 1.0])
@pytest.mark.parametrize('unit', masked.UNITS)
def test_numbers_are_exact_and_special_ids_are_left_alone(config, unit, rate):
  config.data.sequence_length = 128
  objective = make(config, unit=unit, rate=rate)
  rng = np.random.default_rng(0)
  for record in noise.chunks(10_000 if rate == 0.15 else 1000):
    ids = record.ids_L
    before = ids.copy()
    (example,) = objective.corrupt(record, rng)
    assert np.array_equal(ids, before)
    places = predicted(example) - 1  # behind BOS
    text = np.flatnonzero(ids >= NUM_SPECIAL)
    k = max(1, round(rate * len(text))) if len(text) else 0
    if unit == 'word':
      longest = max(np.bincount(record.word_L[text]), default=0)
      assert k - max(longest, 1) < len(places) <= k
    else:
      assert len(places) == k
    assert np.all(ids[places] >= NUM_SPECIAL)
    assert set(example.weights_L.tolist()) <= {0.0, 1.0}
    assert example.targets_L.tolist() == [BOS, *ids]
    changed = np.flatnonzero(example.tokens_L[1:] != ids)
    assert set(changed) <= set(places)
    (size,) = objective.sizes(len(ids), rng)
    assert size.tokens == len(example.tokens_L)
    assert size.predictions >= len(places)


@pytest.mark.parametrize('unit', ['word', 'span'])
def test_words_are_chosen_whole_but_for_the_end_of_the_last_span(config, unit):
  objective = make(config, unit=unit)
  rng = np.random.default_rng(0)
  parts = 0
  for record in noise.chunks(1000):
    (example,) = objective.corrupt(record, rng)
    chosen = example.weights_L[1:] > 0
    cut = [
      word
      for word in np.unique(record.word_L[chosen])
      if not np.all(chosen[record.word_L == word])
    ]
    assert len(cut) <= (unit == 'span')
    for word in cut:
      inside = chosen[record.word_L == word]
      assert inside.tolist() == sorted(inside, reverse=True)
    parts += len(cut)
  assert (parts > 0) == (unit == 'span')


def test_every_token_and_pair_of_tokens_is_as_likely(config):
  rng = np.random.default_rng(0)
  drawn, both = np.zeros(10), np.zeros((10, 10))
  word = np.arange(10)
  for _ in range(10_000):
    hidden = np.zeros(10)
    hidden[masked.select_tokens(word, 3, rng)] = 1
    drawn += hidden
    both += np.outer(hidden, hidden)
  for counts, p in ((drawn, 0.3), (both[np.triu_indices(10, 1)], 1 / 15)):
    deviation = np.sqrt(10_000 * p * (1 - p))
    np.testing.assert_allclose(counts, 10_000 * p, atol=5 * deviation)


def test_spans_have_the_lengths_of_the_paper():
  """3.8 words on average, so that the geometric distribution is cut off."""
  rng = np.random.default_rng(0)
  lengths = []
  for _ in range(10):
    # So few of so many that spans hardly ever meet.
    chosen = masked.select_spans(np.arange(200_000), 1000, rng)
    edges = np.flatnonzero(np.diff(chosen, prepend=-9, append=10**9) > 1)
    lengths.extend(np.diff(edges))
  assert (
    abs(np.mean(lengths) - 3.797) < 5 * np.std(lengths) / len(lengths) ** 0.5
  )
  assert np.mean(np.array(lengths) == 1) == pytest.approx(0.224, abs=0.04)
  assert np.mean(np.array(lengths) <= 10) > 0.99


@pytest.mark.parametrize('unit', masked.UNITS)
@pytest.mark.parametrize('shares', [(0.8, 0.1), (1.0, 0.0), (0.0, 0.5)])
def test_shares_of_masks_and_of_random_pieces(config, unit, shares):
  objective = make(
    config, unit=unit, mask_share=shares[0], random_share=shares[1]
  )
  rng = np.random.default_rng(0)
  read, truth = [], []
  for record in noise.chunks(2000):
    (example,) = objective.corrupt(record, rng)
    read.extend(example.tokens_L[predicted(example)])
    truth.extend(example.targets_L[predicted(example)])
  read, truth = np.array(read), np.array(truth)
  n = len(read)
  pieces = 528 - NUM_SPECIAL
  # A random piece is at times the one that it stands for.
  same = 1 - sum(shares) + shares[1] / pieces
  for count, p in (
    (np.sum(read == MASK), shares[0]),
    (np.sum(read == truth), same),
  ):
    assert abs(count - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9


def test_random_pieces_are_uniform_among_those_in_use(config):
  tokenizer = tokenizer_lib.train('char', 600, ['abc'])
  config.data.vocab_size = 600
  config.data.tokenizer = 'char'
  config.objective.masked.rate = 1.0
  objective = make(config, tokenizer, mask_share=0.0, random_share=1.0)
  rng = np.random.default_rng(0)
  ids = np.full(30, 300)
  read = [
    objective.corrupt(noise.record(ids), rng)[0].tokens_L[1:]
    for _ in range(2000)
  ]
  in_use = len(tokenizer.pieces) - NUM_SPECIAL
  assert in_use == 256 + 3
  counts = np.bincount(np.concatenate(read), minlength=600)
  assert counts.sum() == counts[NUM_SPECIAL : len(tokenizer.pieces)].sum()
  p = 1 / in_use
  np.testing.assert_allclose(
    counts[NUM_SPECIAL : len(tokenizer.pieces)],
    60_000 * p,
    atol=5 * np.sqrt(60_000 * p),
  )


@pytest.mark.parametrize('unit', masked.UNITS)
def test_masks_are_drawn_anew_and_are_a_function_of_the_generator(config, unit):
  objective = make(config, unit=unit)
  for record in noise.chunks(4, most=60):
    record = noise.record(
      np.append(record.ids_L, np.arange(300, 340)),
      np.append(record.word_L, 100 + np.arange(40)),
    )
    first, again, other = (
      objective.corrupt(record, np.random.default_rng(seed))[0]
      for seed in (1, 1, 2)
    )
    for name in ('tokens_L', 'targets_L', 'weights_L', 'order_L'):
      assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.weights_L, other.weights_L)


@pytest.mark.parametrize('unit', masked.UNITS)
def test_texts_without_anything_to_predict(config, unit):
  objective = make(config, unit=unit)
  rng = np.random.default_rng(0)
  (example,) = objective.corrupt(noise.record([EOS]), rng)
  assert example.tokens_L.tolist() == [BOS, EOS]
  assert not example.weights_L.any()
  # One long word.
  record = noise.record([300] * 20, [0] * 20)
  (example,) = objective.corrupt(record, rng)
  assert np.sum(example.weights_L) == (0 if unit == 'word' else 3)


@pytest.mark.parametrize('unit', masked.UNITS)
@pytest.mark.parametrize('rate', [0.15, 0.6])
def test_rows_hold_all_of_an_epoch(config, tmp_path, unit, rate):
  config.data.sequence_length = 64
  objective = make(config, unit=unit, rate=rate)
  capacity = objective.capacity.predictions
  assert capacity == layout.predictions(round(63 * rate), 64)
  assert (capacity > 0) == (rate == 0.15)
  shared, read = noise.check_rows(objective, tmp_path)
  assert 0.5 * rate < shared / read < 1.1 * rate


def test_what_is_read_says_nothing_of_what_is_masked(config):
  objective = make(config)
  seen = 0
  for seed, record in enumerate(noise.chunks(200, most=30)):
    (example,) = objective.corrupt(record, np.random.default_rng(seed))
    places = predicted(example)
    kept = example.tokens_L[places] == example.targets_L[places]
    for place in places[~kept] - 1:
      ids = record.ids_L.copy()
      ids[place] ^= 1  # another byte
      other = noise.record(ids, record.word_L)
      (changed,) = objective.corrupt(other, np.random.default_rng(seed))
      assert np.array_equal(changed.tokens_L, example.tokens_L)
      assert np.flatnonzero(changed.targets_L != example.targets_L) == place + 1
      seen += 1
  assert seen > 200


def test_loss_is_that_of_the_predicted_alone_packed_or_not(config):
  objective = make(config)
  model, params = noise.initialized(config_lib.resolve(config), objective)
  rng = np.random.default_rng(0)
  examples = [
    objective.corrupt(noise.record(rng.integers(270, 526, n)), rng)[0]
    for n in (16, 12)
  ]

  def total(examples, capacity):
    batch = packing.stack([packing.pack(examples, capacity)])
    return noise.term(objective, model, params, batch), batch

  (name, value, weight), batch = total(examples, objective.capacity)
  assert name == 'masked'
  assert batch.predict_BxP is not None
  assert weight == sum(len(predicted(e)) for e in examples) == 2 + 2
  nll_BxL = noise.token_losses(model, params, batch)
  np.testing.assert_allclose(
    value, np.sum(nll_BxL * batch.weights_BxL), rtol=1e-5
  )
  apart = [total([e], types.Size(tokens=20))[0][1] for e in examples]
  np.testing.assert_allclose(value, sum(apart), rtol=1e-5)
