"""Shares of repeated n-grams agree with a slow, plain count."""

import numpy as np
import pytest

from lm.data.text import ngrams, units


def slow_top_share(ids, lengths, n):
  """`ngrams.top_shares` for one n, by dictionaries."""
  found = {}
  for i in range(len(ids) - n + 1):
    found.setdefault(tuple(ids[i : i + n]), []).append(sum(lengths[i : i + n]))
  count = max(map(len, found.values()))
  longest = max(sizes[0] for sizes in found.values() if len(sizes) == count)
  return count * longest / sum(lengths) if count > 1 else 0.0


def slow_repeated_share(ids, lengths, n):
  """`ngrams.repeated_shares` for one n, by sets."""
  seen, inside = set(), set()
  for i in range(len(ids) - n + 1):
    gram = tuple(ids[i : i + n])
    if gram in seen:
      inside.update(range(i, i + n))
    seen.add(gram)
  return sum(lengths[i] for i in inside) / sum(lengths)


@pytest.mark.parametrize('kinds', [2, 5, 40, 10**6])
def test_shares_of_ngrams_equal_those_by_dictionaries(kinds):
  rng = np.random.default_rng(kinds)
  for size in (1, 2, 9, 60, 300):
    ids_L = rng.integers(kinds, size=size)
    if size >= 300:  # so that shares fall slowly with n
      for n in range(2, 12):
        ids_L[20 * n : 21 * n] = ids_L[:n]
    lengths_L = ids_L % 7 + 1
    arguments = ids_L.tolist(), lengths_L.tolist()
    sizes = range(1, 11)
    top = ngrams.top_shares(ids_L, lengths_L, sizes)
    repeated = ngrams.repeated_shares(ids_L, lengths_L, sizes, least=-1)
    assert list(top) == list(repeated) == [n for n in sizes if n <= size]
    for n in top:
      assert top[n] == slow_top_share(*arguments, n)
      assert repeated[n] == slow_repeated_share(*arguments, n)
    for least in (0.05, 0.2):
      some = ngrams.top_shares(ids_L, lengths_L, sizes, least)
      for n in top:
        assert some[n] == top[n] if n in some else top[n] <= least
      some = ngrams.repeated_shares(ids_L, lengths_L, sizes, least)
      for n in repeated:
        assert some[n] == repeated[n] if n in some else repeated[n] <= least


def test_ngrams_of_the_docstrings():
  view = units.of('a rose is a rose is it')
  top = ngrams.top_shares(view.ids_L, view.lengths_L, [2])
  assert top == {2: 12 / 16}
  repeated = ngrams.repeated_shares(view.ids_L, view.lengths_L, [2])
  assert repeated == {2: 7 / 16}
