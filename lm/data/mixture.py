"""Weighted mixtures of sources: which tokens of which documents make an epoch.

An epoch has as many tokens as all training documents together, and exactly its
share of each source, to the token. A source continues in the next epoch where
it stopped, in passes over its documents that are shuffled anew: a source with
twice its natural share is read twice an epoch, one with half of it once every
other epoch. If documents must stay whole, as pairs must, each belongs to the
epoch in which its first token lies, and shares are exact to a document.
"""

import dataclasses
import fractions
from collections.abc import Sequence

import numpy as np

from lm import errors
from lm.data import seeding


@dataclasses.dataclass(frozen=True)
class Ranges:
  """Ranges of documents' tokens, [start, stop) each; int64 [ranges]."""

  document: np.ndarray
  start: np.ndarray
  stop: np.ndarray


def ranges(
  lengths: np.ndarray,
  sources: np.ndarray,
  weights: Sequence[float],
  *,
  seed: int,
  epoch: int,
  whole: bool = False,
) -> Ranges:
  """The ranges of documents' tokens that make an epoch.

  Those of a single source are all documents, whole and in order. Those of two
  sources, with documents of 2 + 2 and of 4 tokens and the weights 3 and 1:

    epoch 0    6 tokens of the first: 2 + 2 and 2 again; 2 of the second, [0, 2)
    epoch 1    6 tokens of the first: 2 left over, 2 + 2; of the second [2, 4)

  Args:
    lengths: int64 [documents], tokens of each.
    sources: int [documents], index into `weights`.
    whole: whether documents must not be cut.

  Raises:
    UserError: a source has no tokens.
  """
  if len(weights) == 1:
    every = np.arange(len(lengths))
    return Ranges(every, np.zeros_like(lengths), lengths)
  total, shares = int(lengths.sum()), _shares(weights)
  parts = []
  for source, share in enumerate(shares):
    first, last = (int(total * share * e) for e in (epoch, epoch + 1))
    members = np.flatnonzero(sources == source)
    parts.append(_take(members, lengths, first, last, seed, source, whole))
  return Ranges(
    *(np.concatenate(columns) for columns in zip(*parts, strict=True))
  )


def _shares(weights: Sequence[float]) -> list[fractions.Fraction]:
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  return [weight / sum(exact) for weight in exact]


def _take(
  members, lengths, first: int, last: int, seed: int, source: int, whole: bool
):
  """Tokens [first, last) of a source's passes, one after another."""
  size = int(lengths[members].sum())
  if not size:
    raise errors.UserError(
      f'data.sources: entry {source + 1}, counted from 1, has no training '
      'text; give more of it or leave it out'
    )
  if first == last:  # The share is less than a token.
    return (np.zeros(0, np.int64),) * 3
  parts = []
  for number in range(first // size, -(-last // size)):
    rng = seeding.generator(seed, number, seeding.PASS, source)
    order = rng.permutation(members)
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    low = max(first - number * size, 0)
    high = min(last - number * size, size)
    inside = ((starts >= low) if whole else (ends > low)) & (starts < high)
    order, starts = order[inside], starts[inside]
    if whole:
      parts.append((order, np.zeros_like(starts), lengths[order]))
      continue
    parts.append(
      (
        order,
        np.maximum(low - starts, 0),
        np.minimum(high - starts, lengths[order]),
      )
    )
  return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
