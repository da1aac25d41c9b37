"""Draws which tokens of a chunk are noise (Raffel et al. 2020, section 3.1.4).

A chunk's length alone determines the number of noise tokens and of runs of
them; their places are drawn. If noise consists of whole words or sentences, its
number of tokens may differ, within bounds that also depend on the length alone.

Axis besides the project's legend: `U` units, here words or sentences.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from lm.data import tokenizer

# Distributions of noise, and the units that it consists of.
NOISES = ('spans', 'iid')
UNITS = ('token', 'word', 'sentence')

# Number of random orders in which sentences are tried.
_TRIES = 8


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Bounds of the noise of a chunk.

  min_tokens: minimum number of noise tokens.
  max_tokens: maximum number of noise tokens.
  max_runs: maximum number of runs of noise.
  max_sentinels: maximum number of sentinels: one a run, and one that closes the
    targets if text comes last.
  """

  min_tokens: int
  max_tokens: int
  max_runs: int
  max_sentinels: int


@dataclasses.dataclass(frozen=True)
class Noise:
  """The distribution of noise.

  rate: share of a chunk's tokens that is noise.
  mean: mean number of tokens in a run.
  kind: a name of NOISES; `iid` draws each set of tokens, or words, of the
    planned size with equal probability.
  unit: a name of UNITS.
  pieces: the bytes of each id, which are needed to find sentences.
  """

  rate: float
  mean: float
  kind: str = 'spans'
  unit: str = 'token'
  pieces: Sequence[bytes] = dataclasses.field(default=(), repr=False)

  def counts(self, n: int, end: bool = False) -> tuple[int, int]:
    """Numbers of noise tokens and of runs of them in a chunk of n tokens.

    Halves are rounded to even, as in T5. There is at least one token of noise,
    and at least one of text if there are two. The rate applies to all n tokens,
    even if the last is EOS (`end`), which is never noise: so a chunk has the
    same size with and without EOS, unless nearly all of it is noise.

    n 284, rate .15, mean 3 -> 43 tokens in 14 runs
    """
    text = n - end
    if not text:
      return 0, 0
    noise = min(max(round(self.rate * n), 1), max(text - 1, 1))
    runs = max(round(noise / self.mean), 1)
    return noise, min(runs, noise, max(text - noise, 1))

  def bounds(self, n: int, end: bool = False) -> Bounds:
    """Bounds of the noise of any chunk of n tokens.

    Noise of words has at most the tokens of `counts`, and at most 8 tokens or
    an eighth fewer. Noise of sentences may also have as many more, in at most
    one run for 16 tokens.
    """
    text = n - end
    noise, runs = self.counts(n, end)
    if text < 2:
      return Bounds(noise, noise, text, 1)
    min_tokens = noise
    if self.unit != 'token':
      min_tokens = max(1, noise - max(8, noise // 8))
    if self.unit == 'sentence':
      max_tokens = min(noise + max(8, noise // 8), text - 1)
      runs = max(2, 1 + max_tokens // 16)
      return Bounds(min_tokens, max_tokens, runs, runs + 1)
    if self.kind == 'iid':
      between = min(noise, text - min_tokens)
      return Bounds(min_tokens, noise, min(noise, between + 1), between + 1)
    if runs == 1:
      # The run is rolled, so it may cover both ends of the chunk.
      sentinels = 2 if self.unit == 'token' else 3
      return Bounds(min_tokens, noise, min(2, noise), sentinels)
    return Bounds(min_tokens, noise, runs, runs + (self.unit == 'word'))

  def draw(self, n: int, rng: np.random.Generator) -> np.ndarray | float | None:
    """Draws for `place`: one number per token, one number, or None."""
    if self.unit == 'sentence':
      return None
    if self.kind == 'iid':
      return rng.random(n) if self.unit == 'token' else None
    # A chunk may have one run with EOS, and two without it.
    return rng.random() if self.counts(n, end=True)[1] < 2 else None

  def measure(self, n: int, rng: np.random.Generator) -> list[Bounds]:
    """Bounds for a chunk of n tokens, and for one that ends in EOS.

    Its draws equal the first ones of `mask`; where these determine all of the
    noise, the bounds are exact.
    """
    drawn = self.draw(n, rng)
    found = []
    for end in (False, True):
      bounds = self.bounds(n, end)
      noise, runs = self.counts(n, end)
      exact = self.kind == 'iid' or runs == 1
      if self.unit == 'token' and exact and n - end > 1:
        bounds = _measured(self.place(n - end, noise, drawn))
      found.append(bounds)
    return found

  def mask(
    self,
    ids_L: np.ndarray,
    word_L: np.ndarray,
    rng: np.random.Generator,
  ) -> np.ndarray:
    """Whether each token is noise, bool, without an EOS at the end.

    The token of a chunk of one token is noise.
    """
    n = len(ids_L)
    end = bool(ids_L[-1] == tokenizer.EOS)
    drawn = self.draw(n, rng)
    text = n - end
    if text < 2:
      return np.ones(text, bool)
    noise, runs = self.counts(n, end)
    bounds = self.bounds(n, end)
    if self.unit == 'sentence':
      sentence_L = sentence_index(ids_L[:text], self.pieces)
      return _sentences(sentence_L, noise, bounds, rng)
    if self.unit == 'word' and self.kind == 'iid':
      return _words_iid(word_L[:text], noise, bounds, rng)
    if self.kind == 'iid' or runs == 1:
      mask_L = self.place(text, noise, drawn)
    else:
      mask_L = random_spans(text, noise, runs, rng)
    if self.unit == 'word':
      return _words(mask_L, word_L[:text], noise, runs, bounds, rng)
    return mask_L

  def place(self, n: int, noise: int, drawn: np.ndarray | float) -> np.ndarray:
    """Noise at the smallest numbers, or one rolled run placed by one number.

    n 5, noise 2, drawn 0.7    noise [0 1 1 0 0]
    n 5, noise 2, drawn 0.3    noise [1 0 0 0 1]
    """
    if isinstance(drawn, float):
      rolled = (np.arange(n) - int(drawn * n)) % n
      return rolled >= n - noise
    return _smallest(drawn[:n], noise)


def random_segmentation(
  items: int, segments: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws lengths of at least 1 that add up to `items`, uniformly.

  items 6, segments 3 -> such as [1 4 1]
  """
  cuts = rng.choice(items - 1, segments - 1, replace=False, shuffle=False)
  cuts.sort()
  edges = np.empty(segments + 1, np.int64)
  edges[0], edges[-1] = 0, items
  edges[1:-1] = cuts + 1
  return np.diff(edges)


def random_spans(
  n: int, noise: int, runs: int, rng: np.random.Generator
) -> np.ndarray:
  """Alternating runs of text and of noise; text is first, noise is last.

  n 9, noise 4, runs 2 -> such as [0 0 1 0 0 0 1 1 1]
  """
  lengths = np.empty(2 * runs, np.int64)
  lengths[0::2] = random_segmentation(n - noise, runs, rng)
  lengths[1::2] = random_segmentation(noise, runs, rng)
  return np.repeat(np.arange(2 * runs) % 2 == 1, lengths)


def run_starts(mask_L: np.ndarray) -> np.ndarray:
  """Whether a run starts at each token, bool.

  mask [0 1 1 0 1] -> [0 1 0 0 1]
  """
  starts_L = mask_L.copy()
  starts_L[1:] &= ~mask_L[:-1]
  return starts_L


def sentence_index(
  ids_L: np.ndarray, pieces: Sequence[bytes] = ()
) -> np.ndarray:
  """The sentence that each token belongs to, from 0, int32.

  A sentence ends after . ! ? before a blank, a line's end or the text's end,
  and anywhere after their Chinese forms or an ellipsis, including the closing
  quotes and brackets that follow; and at a line's end. Ends are found in the
  bytes of the text, independently of the pieces: a token that crosses an end
  belongs to the sentence that ends in it.

  tokens 'Go' '.' ' He' ' is' ' 3' '.' '5' '.”' '\\n' '好' '。' '我'
  index   0    0   1     1     1    1   1   1     1    2    2    3

  Args:
    pieces: the bytes of each id; (): all ids must be byte ids.
  """
  pieces = pieces or _BYTES
  if len(ids_L) and ids_L.max() >= len(pieces):
    raise ValueError(
      f'id {ids_L.max()} has no bytes: sentences are found with the tokenizer '
      'that made the ids; give it to objectives.make'
    )
  parts = [pieces[i] for i in ids_L.tolist()]
  ends = [m.end() for m in _sentence_end().finditer(b''.join(parts))]
  lengths = np.fromiter(map(len, parts), np.int64, len(parts))
  starts = np.cumsum(lengths) - lengths
  return np.searchsorted(ends, starts, side='right').astype(np.int32)


_BYTES = (b'',) * tokenizer.NUM_SPECIAL + tuple(
  bytes([byte]) for byte in range(256)
)


@functools.cache
def _sentence_end() -> re.Pattern[bytes]:
  def one_of(characters: str) -> str:
    return '(?:' + '|'.join(re.escape(c) for c in characters) + ')'

  closing = one_of('"\')]}”’»」』）】》') + '*'
  pattern = (
    rf'(?:[.!?]+{closing}(?=\s|\Z)|{one_of("。！？…")}+{closing})'
    r'(?:[ \t\r]*\n)*'
    r'|(?:[ \t\r]*\n)+'
  )
  return re.compile(pattern.encode())


def _measured(mask_L: np.ndarray) -> Bounds:
  noise = int(np.count_nonzero(mask_L))
  runs = int(np.count_nonzero(run_starts(mask_L)))
  return Bounds(noise, noise, runs, runs + (not mask_L[-1]))


def _smallest(drawn_L: np.ndarray, count: int) -> np.ndarray:
  """Whether each number is one of the `count` smallest."""
  mask_L = np.zeros(len(drawn_L), bool)
  mask_L[np.argpartition(drawn_L, count - 1)[:count]] = True
  return mask_L


def _units(unit_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Starts and lengths of the units."""
  starts_U = np.flatnonzero(np.diff(unit_L, prepend=unit_L[0] - 1))
  return starts_U, np.diff(starts_U, append=len(unit_L))


def _words(
  mask_L: np.ndarray,
  word_L: np.ndarray,
  noise: int,
  runs: int,
  bounds: Bounds,
  rng: np.random.Generator,
) -> np.ndarray:
  """Moves the noise of `mask_L` to the words whose first token is noise.

  Words at the edges of runs are removed while there are too many tokens. Then
  words that fit are added, as new runs if runs are missing, else beside runs. A
  chunk whose words are too long to reach the bounds keeps `mask_L`.
  """
  starts_U, lengths_U = _units(word_L)
  chosen_U = mask_L[starts_U]
  total = int(lengths_U[chosen_U].sum())
  while total > noise:
    edges = np.flatnonzero(_edges(chosen_U))
    word = edges[rng.integers(len(edges))]
    chosen_U[word] = False
    total -= int(lengths_U[word])
  while total < noise:
    fits_U = ~chosen_U & (lengths_U <= noise - total)
    fits_U[0] = False  # The first word remains text.
    beside_U = fits_U & _beside(chosen_U)
    if run_starts(chosen_U).sum() < runs and (fits_U > beside_U).any():
      beside_U = fits_U & ~beside_U
    words = np.flatnonzero(beside_U)
    if not len(words):
      break
    word = words[rng.integers(len(words))]
    chosen_U[word] = True
    total += int(lengths_U[word])
  if total < bounds.min_tokens:
    return mask_L
  return np.repeat(chosen_U, lengths_U)


def _beside(chosen_U: np.ndarray) -> np.ndarray:
  """Whether the unit before or after each unit is chosen."""
  beside_U = np.zeros(len(chosen_U), bool)
  beside_U[1:] = chosen_U[:-1]
  beside_U[:-1] |= chosen_U[1:]
  return beside_U


def _edges(chosen_U: np.ndarray) -> np.ndarray:
  """Whether each unit is the first or the last in a run of chosen ones."""
  bordered = np.pad(chosen_U, 1)
  return chosen_U & ~(bordered[:-2] & bordered[2:])


def _words_iid(
  word_L: np.ndarray, noise: int, bounds: Bounds, rng: np.random.Generator
) -> np.ndarray:
  """Whole words that fit, in random order; tokens if out of bounds."""
  mask_L = _in_random_order(word_L, noise, bounds, rng)
  if mask_L is None:
    return _smallest(rng.random(len(word_L)), noise)
  return mask_L


def _sentences(
  sentence_L: np.ndarray, noise: int, bounds: Bounds, rng: np.random.Generator
) -> np.ndarray:
  """Gap sentences (Zhang et al. 2020, section 3.1, random).

  If no order of the sentences reaches the bounds, one run of tokens is noise.
  """
  for _ in range(_TRIES):
    mask_L = _in_random_order(sentence_L, noise, bounds, rng)
    if mask_L is not None:
      return mask_L
  n = len(sentence_L)
  return np.roll(np.arange(n) >= n - noise, rng.integers(n))


def _in_random_order(
  unit_L: np.ndarray, noise: int, bounds: Bounds, rng: np.random.Generator
) -> np.ndarray | None:
  """Adds units that bring the sum closer to `noise`; None: out of bounds."""
  _, lengths_U = _units(unit_L)
  lengths = lengths_U.tolist()
  # Whether each unit is chosen, with a border on either side.
  chosen = [False] * (len(lengths) + 2)
  total = runs = 0
  for unit in rng.permutation(len(lengths)).tolist():
    after = total + lengths[unit]
    if after > bounds.max_tokens or abs(after - noise) >= abs(total - noise):
      continue
    # An isolated unit adds a run; one between two runs joins them.
    change = 1 - chosen[unit] - chosen[unit + 2]
    if runs + change > bounds.max_runs:
      continue
    chosen[unit + 1] = True
    total, runs = after, runs + change
    if total == noise:
      break
  if total < bounds.min_tokens:
    return None
  return np.repeat(chosen[1:-1], lengths_U)
