"""Bits of held-out text: passages, windows, and the sums.

A window is context and scored text. The context is never masked; each scored
token costs minus log2 of its probability among the ids that can be text. What
a model is asked for that probability is in `scorers.py`.
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
  """What is given and what is scored, each tokenized alone.

  size: bytes of text that the scored ids stand for. source: number of the
  source that they come from.
  """

  context: np.ndarray
  scored: np.ndarray
  size: int
  source: int = dataclasses.field(default=0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Part:
  """Scored ids [first, first + n) of a passage: what one window scores.

  bits_n, special_mass_n: float64, of each id; of a sampled bound, estimates.
  variance: of the estimate of all their bits; 0 where nothing is sampled.
  """

  passage: Passage
  first: int
  bits_n: np.ndarray
  special_mass_n: np.ndarray
  variance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over passages.

  bits: of the scored ids. size: bytes of their text. tokens: how many they
  are. special_mass: probability that special ids lost, a sum over tokens.
  passages: how many. variance: of the bits, where they are an estimate.
  of_source: the same of each source, by its number; only in what a scorer
  returns.
  """

  bits: float = 0.0
  size: int = 0
  tokens: int = 0
  special_mass: float = 0.0
  passages: int = 0
  variance: float = 0.0
  of_source: Mapping[int, 'Score'] = dataclasses.field(default_factory=dict)

  def add(self, part: Part) -> 'Score':
    """The sums with a part; a passage counts with its first one."""
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
    """Bits that a byte of the scored text costs."""
    return self.bits / self.size

  def standard_error(self) -> float:
    """Of `bits_per_byte`, over the samples of an estimate."""
    return math.sqrt(self.variance) / self.size

  def perplexity(self) -> float:
    """Of a scored token; depends on the tokenizer."""
    return float(2 ** (self.bits / self.tokens))


def documents(split: store.Split) -> Iterator[Passage]:
  """Whole documents; EOS, and a pair's SEP, count bits and no bytes."""
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
  """The stored windows: the second half, given the first.

  Args:
    split: the documents that they are of, which know their sources; None:
      there is one source.

  Raises:
    UserError: they are windows of other documents.
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
  """The number of each window's source."""
  documents = windows_lib.documents_of(windows, split.sizes().tolist())
  if documents is None:
    raise errors.UserError(
      f'{path} holds windows of other documents than {split.directory} does; '
      'put back both as they were prepared'
    )
  return [int(split.sources[document]) for document in documents]


def spread(windows: Sequence[Passage], count: int) -> list[Passage]:
  """`count` of the windows, evenly over all of them; 0 or too many: all."""
  count = min(count or len(windows), len(windows))
  return [windows[i * len(windows) // count] for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Room:
  """Ids that fit a window: most of `context`, most of `scored`, `both`."""

  context: int
  scored: int
  both: int


def spans(context: int, total: int, room: Room) -> Iterator[tuple[int, ...]]:
  """Windows over ids 0..total that score each id from `context` on once.

  Where all fits, that is one window. Else a window reads ids [start, stop) and
  scores those from `scored` on, at most half of what it has room for; so every
  scored id but a document's first ones has half a window of context at least.

  context 0, total 10, room for 4 of each and of both
  start   [0 0 2 4 6]
  scored  [0 2 4 6 8]
  stop    [2 4 6 8 10]

  Yields:
    (start, scored, stop).
  """
  n = total - context
  if n and context <= room.context and n <= room.scored and total <= room.both:
    yield 0, context, total
    return
  stride = max(1, min(room.scored, room.context, room.both // 2))
  for scored in range(context, total, stride):
    stop = min(scored + stride, total)
    yield max(0, stop - room.both, scored - room.context), scored, stop
