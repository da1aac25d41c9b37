"""Shares of a text in repeated n-grams, from arrays of unit numbers.

A unit is a word or a character. n-grams are compared by 64-bit hashes that
depend on the units alone, so that results are the same everywhere.
"""

from collections.abc import Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


def top_shares(
  ids_L: np.ndarray,
  lengths_L: np.ndarray,
  sizes: Sequence[int],
  least: float = 0.0,
) -> dict[int, float]:
  """The share of characters in the most frequent n-gram, by n.

    words    a rose is a rose is it      n = 2
    top      'rose is', twice, 6 characters each time, of 16
    returns  {2: 12 / 16}

  Args:
    ids_L: number of each unit, in order, not negative; equal units have equal
      numbers.
    lengths_L: characters of each unit.
    sizes: the n, ascending.
    least: an n whose share cannot exceed this is left out, which is much
      cheaper: no n-gram is more frequent than a shorter one in it.

  Returns:
    Characters of the n-gram times its occurrences, which may overlap, over all
    characters; 0 if no n-gram occurs twice. Of several equally frequent ones
    the longest counts.
  """
  shares = {}
  if not ids_L.size:
    return shares
  total, mixed_L = int(lengths_L.sum()), _mix(ids_L)
  # Numbers of characters may be large, those of words are dense.
  dense = int(ids_L.max()) < 4 * ids_L.size
  highest = int(np.bincount(ids_L).max()) if dense else ids_L.size
  for n in sizes:
    if ids_L.size < n:
      break
    window_lengths = _window_lengths(lengths_L, n)
    if highest * int(window_lengths.max()) <= least * total:
      continue
    keys, shift = _sorted_keys(hashes(mixed_L, n))
    grams = keys >> shift
    firsts = np.flatnonzero(np.concatenate([[True], grams[1:] != grams[:-1]]))
    counts = np.diff(firsts, append=keys.size)
    highest = int(counts.max())
    positions = _positions(keys[firsts[counts == highest]], shift)
    longest = int(window_lengths[positions].max())
    shares[n] = highest * longest / total if highest > 1 else 0.0
  return shares


def repeated_shares(
  ids_L: np.ndarray,
  lengths_L: np.ndarray,
  sizes: Sequence[int],
  least: float = 0.0,
) -> dict[int, float]:
  """The share of characters inside n-grams that occurred before, by n.

  Characters in several of them count once; first occurrences do not count.

    words    a rose is a rose is it      n = 2
    before             ^^^^^^^^^         'a rose', 'rose is'
    returns  {2: 7 / 16}

  Args:
    ids_L: number of each unit, in order; equal units have equal numbers.
    lengths_L: characters of each unit.
    sizes: the n, ascending. The share falls with n, since a repeated n-gram
      consists of repeated shorter ones.
    least: larger n are left out after the first share that is no more than
      this.
  """
  shares = {}
  total, mixed_L = int(lengths_L.sum()), _mix(ids_L)
  candidates = None
  for n in sizes:
    if ids_L.size < n:
      break
    keys, shift = _sorted_keys(hashes(mixed_L, n), candidates)
    again = (keys[1:] >> shift) == (keys[:-1] >> shift)
    positions = _positions(keys, shift)
    repeated = positions[1:][again]
    edges = np.zeros(ids_L.size + 1, np.int64)
    edges[repeated] += 1
    edges[repeated + n] -= 1
    inside = np.cumsum(edges)[:-1] > 0
    shares[n] = int(lengths_L[inside].sum()) / total
    if shares[n] <= least:
      break
    # Only what is repeated at n can be repeated at a larger n.
    either = np.zeros(keys.size, bool)
    either[1:] |= again
    either[:-1] |= again
    candidates = positions[either]
  return shares


def _window_lengths(lengths_L: np.ndarray, n: int) -> np.ndarray:
  """Characters of the n-gram that begins at each unit."""
  ends = np.cumsum(lengths_L)
  windows = ends[n - 1 :].copy()
  windows[1:] -= ends[:-n]
  return windows


def _mix(ids_L: np.ndarray) -> np.ndarray:
  """SplitMix64 of each number: equal ones stay equal, others are scattered."""
  x = (ids_L.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def hashes(mixed_L: np.ndarray, n: int) -> np.ndarray:
  """The hash, uint64, of the n-gram that begins at each unit.

  Args:
    mixed_L: uint64, a hash of each unit.
  """
  count = mixed_L.size - n + 1
  grams = mixed_L[:count].copy()
  for offset in range(1, n):
    grams *= _MULTIPLIER
    grams += mixed_L[offset : offset + count]
  return grams


def _sorted_keys(
  hashes: np.ndarray, positions: np.ndarray | None = None
) -> tuple[np.ndarray, np.uint64]:
  """Sorted hashes with positions in the low bits, and the number of these bits.

  One plain sort brings equal n-grams together and keeps them in order. For a
  million units the position needs 20 bits; two of their n-grams are then
  mistaken for each other with a chance of 3 %, which moves no share.
  """
  if positions is None:
    positions = np.arange(hashes.size)
  else:
    positions = positions[positions < hashes.size]
  shift = np.uint64(max(1, int(hashes.size).bit_length()))
  keys = (hashes[positions] >> shift) << shift
  keys |= positions.astype(np.uint64)
  keys.sort()
  return keys, shift


def _positions(keys: np.ndarray, shift: np.uint64) -> np.ndarray:
  low = (np.uint64(1) << shift) - np.uint64(1)
  return (keys & low).astype(np.int64)
