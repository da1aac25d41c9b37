"""Near duplicates by MinHash and locality-sensitive hashing.

Broder 1997 for MinHash; banding as in Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, section 3.4, with enough bands that no pair is missed.
Sketches are those of datasketch. Its index keeps about 4 kB of Python objects a
document; here the bands are joined by sorting, 8 bytes a document, and sketches
stay on disk.
"""

import functools
import math
from collections.abc import Iterator

import datasketch
import numpy as np

from lm.data.text import ngrams, words

# Words per shingle; in Chinese each character is a word.
SHINGLE = 5
PERMUTATIONS = 128
# Value of every place in the sketch of a text without words.
_NOTHING = 0xFFFFFFFF

# Base of the polynomial hash of a word; odd, hence invertible modulo 2^64.
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def shingles(text: str) -> np.ndarray:
  """Distinct hashes of the runs of `SHINGLE` words; uint64, sorted.

  Case, blanks and punctuation are ignored. A shorter text is one shingle of all
  of its words, and a text without words has none.

    'To be, or not to be'    two: 'to be or not to', 'be or not to be'
  """
  hashes = _word_hashes(text.lower())
  count = min(len(hashes), SHINGLE)
  if not count:
    return np.zeros(0, np.uint64)
  return np.unique(_mixed(ngrams.hashes(hashes, count)))


def sketch(text: str) -> np.ndarray:
  """The MinHash of the text's shingles, uint32 [PERMUTATIONS].

  The share of places in which two sketches agree estimates the Jaccard
  similarity of their shingles, with a standard deviation of at most 0.045.
  """
  empty = _empty()
  minhash = datasketch.MinHash(
    num_perm=PERMUTATIONS,
    hashvalues=empty.hashvalues,
    permutations=empty.permutations,
    scheme=empty.scheme,
    hashfunc=int,
  )
  minhash.update_batch((shingles(text) >> np.uint64(32)).tolist())
  return minhash.hashvalues.astype(np.uint32)


def find(
  sketches_DxP: np.ndarray,
  order: np.ndarray,
  threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds documents to drop so that no near duplicates remain.

  Of two documents whose sketches agree in at least a share of `threshold`, the
  later one in `order` is dropped, unless an earlier band has dropped the other;
  a later band may still drop the other. A text without words has no near
  duplicates. Only documents that share a band are compared: near duplicates
  always share one, see `bands`.

  Args:
    sketches_DxP: uint32, may be mapped from disk.
    order: numbers of the documents to compare; of two, the first is kept.

  Returns:
    (twin, similarity): the document that each one is dropped for, or -1, int64
    [D]; and the share of places in which the two agree, float32 [D].
  """
  twin = np.full(len(sketches_DxP), -1, np.int64)
  similarity = np.zeros(len(sketches_DxP), np.float32)
  order = _with_words(sketches_DxP, order)
  for columns in bands(threshold):
    for group in _groups(sketches_DxP, order, columns):
      _drop_within(group, sketches_DxP, threshold, twin, similarity)
  return twin, similarity


def bands(threshold: float) -> list[slice]:
  """The columns of each band, one band more than places that may differ.

  So any two sketches that agree in at least `threshold` of their places are
  equal in at least one band. At 0.8 they may differ in 25 places: 26 bands of
  4 rows. A lower threshold has narrower bands, of 3 rows at 0.7 and of 1 at
  0.5, in which more documents agree that are not near duplicates.
  """
  count = PERMUTATIONS - math.ceil(threshold * PERMUTATIONS) + 1
  rows = PERMUTATIONS // count
  return [slice(band * rows, (band + 1) * rows) for band in range(count)]


@functools.cache
def _empty() -> datasketch.MinHash:
  """A sketch of nothing, whose permutations all others share."""
  return datasketch.MinHash(num_perm=PERMUTATIONS)


def _with_words(sketches_DxP: np.ndarray, order: np.ndarray) -> np.ndarray:
  found = np.zeros(len(order), bool)
  for first in range(0, len(order), _ROWS):
    part = slice(first, first + _ROWS)
    found[part] = (sketches_DxP[order[part]] != _NOTHING).any(axis=1)
  return order[found]


def _groups(
  sketches_DxP: np.ndarray, order: np.ndarray, columns: slice
) -> Iterator[np.ndarray]:
  """Documents that agree in a band, in order; only groups of two and more."""
  keys = np.zeros(len(order), np.uint64)
  for first in range(0, len(order), _ROWS):
    part = order[first : first + _ROWS]
    rows = np.asarray(sketches_DxP[part, columns]).astype(np.uint64)
    for values in rows.T:
      place = slice(first, first + len(part))
      keys[place] = _mixed(keys[place] + values + np.uint64(1))
  by_key = np.argsort(keys, kind='stable')
  keys = keys[by_key]
  edges = np.flatnonzero(np.diff(keys)) + 1
  starts = np.concatenate([[0], edges])
  stops = np.concatenate([edges, [len(keys)]])
  several = stops - starts > 1
  for start, stop in zip(starts[several], stops[several], strict=True):
    yield order[by_key[start:stop]]


# Sketches read at a time.
_ROWS = 1 << 16


def _drop_within(group, sketches_DxP, threshold, twin, similarity):
  """Drops each document of a group that is near an earlier, kept one."""
  sketches_GxP = np.asarray(sketches_DxP[group])
  left = np.flatnonzero(twin[group] < 0)
  while len(left) > 1:
    first, left = left[0], left[1:]
    same = np.mean(sketches_GxP[left] == sketches_GxP[first], axis=1)
    near = same >= threshold
    twin[group[left[near]]] = group[first]
    similarity[group[left[near]]] = same[near]
    left = left[~near]


def _word_hashes(text: str) -> np.ndarray:
  """A hash of each word of letters, digits or ideographs; uint64 [words]."""
  codes = words.code_points(text)
  if not codes.size:
    return np.zeros(0, np.uint64)
  kinds, extends = words.classes(codes)
  starts = np.ones(codes.size, bool)
  starts[1:] = (kinds[:-1] != kinds[1:]) | (kinds[1:] == words.SINGLE)
  starts &= ~extends
  starts[0] = True
  letters = (kinds == words.LETTER) | (kinds == words.SINGLE)
  codes, starts = codes[letters], np.flatnonzero(starts[letters])
  if not len(starts):
    return np.zeros(0, np.uint64)
  powers, inverses = _powers(len(codes))
  sums = np.cumsum((codes.astype(np.uint64) + np.uint64(1)) * powers)
  totals = np.append(sums[starts[1:] - 1], sums[-1])
  totals[1:] -= totals[:-1].copy()
  return _mixed(totals * inverses[starts])


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
  """The first powers of `_BASE` and of its inverse modulo 2^64."""
  size = 1 << max(16, (count - 1).bit_length())
  powers, inverses = _power_table(size)
  return powers[:count], inverses[:count]


@functools.lru_cache(maxsize=1)
def _power_table(size: int) -> tuple[np.ndarray, np.ndarray]:
  tables = []
  for base in (_BASE, pow(_BASE, -1, 1 << 64)):
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    tables.append(np.cumprod(factors))
  return tables[0], tables[1]


def _mixed(x: np.ndarray) -> np.ndarray:
  """Spreads every bit upwards and back: the middle steps of SplitMix64."""
  x = (x ^ (x >> np.uint64(30))) * _MIX
  return x ^ (x >> np.uint64(31))
