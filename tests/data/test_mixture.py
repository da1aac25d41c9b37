"""Mixtures: exact shares in each epoch, and all documents equally often."""

import numpy as np
import pytest

from lm import errors
from lm.data import mixture

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 90, 60).astype(np.int64)
SOURCES = np.repeat([0, 1, 2], [40, 5, 15])
WEIGHTS = (0.2, 3, 1.5)


def epoch(number, *, weights=WEIGHTS, seed=0):
  return mixture.ranges(LENGTHS, SOURCES, weights, seed=seed, epoch=number)


def tokens(ranges, source):
  member = SOURCES[ranges.document] == source
  return int((ranges.stop - ranges.start)[member].sum())


def times_read(first, last):
  """How often each token of each document is read in epochs first..last."""
  count = [np.zeros(n, int) for n in LENGTHS]
  for number in range(first, last):
    ranges = epoch(number)
    for d, start, stop in zip(
      ranges.document, ranges.start, ranges.stop, strict=True
    ):
      count[d][start:stop] += 1
  return count


def test_a_single_source_is_read_whole_and_in_order():
  ranges = epoch(3, weights=(1.0,))
  assert ranges.document.tolist() == list(range(60))
  assert not ranges.start.any()
  assert np.array_equal(ranges.stop, LENGTHS)


def test_the_example_of_the_docstring():
  lengths, sources = np.array([2, 2, 4]), np.array([0, 0, 1])
  for number, second in ((0, (0, 2)), (1, (2, 4))):
    ranges = mixture.ranges(lengths, sources, (3, 1), seed=0, epoch=number)
    of_first = sources[ranges.document] == 0
    assert (ranges.stop - ranges.start)[of_first].tolist() == [2, 2, 2]
    assert (ranges.start[~of_first], ranges.stop[~of_first]) == second


def test_every_epoch_has_the_exact_shares():
  total = LENGTHS.sum()
  for number in range(5):
    for source, weight in enumerate(WEIGHTS):
      share = total * weight / sum(WEIGHTS)
      # Shares are cut to whole tokens; the next epoch gets the rest of one.
      assert abs(tokens(epoch(number), source) - share) < 1
  for source, weight in enumerate(WEIGHTS):
    found = sum(tokens(epoch(number), source) for number in range(5))
    assert abs(found - 5 * total * weight / sum(WEIGHTS)) < 1


def test_a_source_is_read_in_passes_that_continue_over_epochs():
  """No token is read again before all others of its source have been."""
  for last in range(1, 8):
    count = times_read(0, last)
    for source in range(3):
      values = np.concatenate(
        [count[d] for d in np.flatnonzero(source == SOURCES)]
      )
      assert values.max() - values.min() <= 1
  # The second source is small and weighs most: it is read many times over.
  assert min(count[d].min() for d in range(40, 45)) > 10


def test_epochs_and_seeds_shuffle_anew():
  read = [epoch(0), epoch(1), epoch(0, seed=1)]
  orders = [ranges.document.tolist() for ranges in read]
  assert orders[0] != orders[1]
  assert orders[0] != orders[2]
  assert orders[0] == epoch(0).document.tolist()


def test_a_source_without_text_is_reported():
  with pytest.raises(errors.UserError, match=r'data\.sources: entry 2,'):
    mixture.ranges(LENGTHS[:40], SOURCES[:40], (1, 1), seed=0, epoch=0)


def test_a_share_of_less_than_a_token_waits_for_its_turn():
  """A source with a weight of 1 beside 1000, and 20 tokens an epoch."""
  lengths, sources = np.array([8, 4, 8]), np.array([0, 0, 1])
  count = 0
  for number in range(51):
    ranges = mixture.ranges(lengths, sources, (1000, 1), seed=0, epoch=number)
    assert (ranges.stop > ranges.start).all()
    size = ranges.stop - ranges.start
    count += int(size[sources[ranges.document] == 1].sum())
  assert count == 51 * 20 // 1001
