"""Bits of held-out text: passages, windows, and the sums.

A window consists of context and scored text. The context is never masked; each
scored token costs minus log2 of its probability among the ids that can be text.
`scoring_methods.py` builds the examples that give that probability.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm import errors
from lm.data import store, tokenizer as tokenizer_lib, windows as windows_lib


@dataclasses.dataclass(frozen=True)
class Passage:
  """A context and the text scored after it, each tokenized alone.

  context, scored: int32 ids.
  size: bytes of text that the scored ids stand for.
  source: number of the source that they come from.
  """

  context: np.ndarray
  scored: np.ndarray
  size: int
  source: int = dataclasses.field(default=0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Part:
  """The scores of one window: ids [first, first + n) of a passage.

  bits_n: float64, bits of each id; estimates if the method samples a bound.
  special_mass_n: float64, probability that special ids lost at each id.
  variance: variance of the estimated sum of bits; 0 unless bits are sampled.
  """

  passage: Passage
  first: int
  bits_n: np.ndarray
  special_mass_n: np.ndarray
  variance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over passages.

  bits: bits of the scored ids.
  size: bytes of their text.
  tokens: number of scored ids.
  special_mass: probability that special ids lost, summed over tokens.
  passages: number of passages.
  variance: variance of `bits` if they are estimated.
  by_source: number of a source -> its sums; only scorers fill it in.
  """

  bits: float = 0.0
  size: int = 0
  tokens: int = 0
  special_mass: float = 0.0
  passages: int = 0
  variance: float = 0.0
  by_source: Mapping[int, 'Score'] = dataclasses.field(default_factory=dict)

  def add(self, part: Part) -> 'Score':
    """Adds a part; its passage is counted with its first part."""
    opens = part.first == 0
    return Score(
      bits=self.bits + float(part.bits_n.sum()),
      size=self.size + opens * part.passage.size,
      tokens=self.tokens + len(part.bits_n),
      special_mass=self.special_mass + float(part.special_mass_n.sum()),
      passages=self.passages + opens,
      variance=self.variance + part.variance,
    )

  def bits_per_byte(self) -> float:
    """Bits per byte of the scored text."""
    return self.bits / self.size

  def standard_error(self) -> float:
    """Standard error of `bits_per_byte` over the samples of an estimate."""
    return math.sqrt(self.variance) / self.size

  def perplexity(self) -> float:
    """Perplexity per scored token; depends on the tokenizer."""
    return float(2 ** (self.bits / self.tokens))


def documents(split: store.Split) -> Iterator[Passage]:
  """Whole documents; EOS, and a pair's SEP, cost bits and have no bytes."""
  nothing = np.zeros(0, np.int32)
  for document in range(len(split)):
    ids, _, starts = split.read(document)
    yield Passage(
      context=nothing,
      scored=ids,
      size=int(starts[-1]),
      source=int(split.sources[document]),
    )


def suffixes(
  path: pathlib.Path,
  tokenizer: tokenizer_lib.Tokenizer,
  split: store.Split | None = None,
) -> Iterator[Passage]:
  """The stored windows; the second half is scored given the first.

  Args:
    split: documents that the windows were cut from, with their sources; None
      if there is only one source.

  Raises:
    UserError: the windows were cut from other documents.
  """
  with open(path, encoding='utf-8', newline='\n') as f:
    windows = [json.loads(line) for line in f]
  sources = [0] * len(windows)
  if split is not None and windows:  # pairs have none
    sources = _sources(path, windows, split)
  contexts = tokenizer.encode_batch([w['context'] for w in windows])
  scored = tokenizer.encode_batch([w['scored'] for w in windows])
  for window, before, after, source in zip(
    windows, contexts, scored, sources, strict=True
  ):
    size = len(window['scored'].encode())
    yield Passage(context=before, scored=after, size=size, source=source)


def _sources(path, windows, split: store.Split) -> list[int]:
  """Number of the source that each window comes from."""
  documents = windows_lib.documents_of(windows, split.sizes().tolist())
  if documents is None:
    raise errors.UserError(
      f'{path} holds windows of other documents than {split.directory} does; '
      'restore both as they were prepared'
    )
  return [int(split.sources[document]) for document in documents]


def spread(windows: Sequence[Passage], count: int) -> list[Passage]:
  """Returns `count` evenly spaced windows; all if 0 or more than there are."""
  count = min(count or len(windows), len(windows))
  return [windows[i * len(windows) // count] for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Limits:
  """Maximum numbers of ids in a window.

  context: maximum number of context ids.
  scored: maximum number of scored ids.
  both: maximum number of both together.
  """

  context: int
  scored: int
  both: int


def cut_windows(
  context: int, total: int, limits: Limits
) -> Iterator[tuple[int, ...]]:
  """Cuts ids 0..total into windows that score each id from `context` on once.

  If all ids fit, there is one window. Otherwise a window reads the ids
  [start, stop) and scores those from `scored` on, at most half of its limit. So
  every scored id, except the first ones of a document, has at least half a
  window of context.

  context 0, total 10, limits 4 4 4
  start   [0 0 2 4 6]
  scored  [0 2 4 6 8]
  stop    [2 4 6 8 10]

  Yields:
    (start, scored, stop).
  """
  n = total - context
  if (
    n
    and context <= limits.context
    and n <= limits.scored
    and total <= limits.both
  ):
    yield 0, context, total
    return
  stride = max(1, min(limits.scored, limits.context, limits.both // 2))
  for scored in range(context, total, stride):
    stop = min(scored + stride, total)
    yield max(0, stop - limits.both, scored - limits.context), scored, stop
