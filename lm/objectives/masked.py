"""Masked language modelling (Devlin et al. 2019, section 3.1).

A share of the tokens is chosen anew each time that a text is read (dynamic
masking: Liu et al. 2019, section 4.1), and predicted from all of the others.
There are neither sentence pairs nor a second loss. What is chosen together, see
UNITS: tokens; whole words, as in BERT's release of May 2019; spans of words
(Joshi et al. 2020, section 3.1, without its span-boundary objective).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from lm import errors, field, types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import layout, masking

# P(length) = p (1 - p)^(length - 1), cut off behind the longest. The paper says
# that lengths are clipped there; its mean of 3.8 words is that of lengths cut
# off and drawn again, since clipped ones have 4.5.
SPAN_P, SPAN_LONGEST = 0.2, 10

Unit = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def make(
  config, tokenizer: tokenizer_lib.Tokenizer | None = None
) -> types.Objective:
  """The objective; `objective.masked` says how many are chosen, and how."""
  cfg, length = config.objective.masked, config.data.sequence_length
  raw_length = length - 1  # BOS
  return types.Objective(
    raw_length=raw_length,
    capacity=types.Size(
      tokens=length,
      predictions=layout.predictions(count(raw_length, cfg.rate), length),
    ),
    sizes=functools.partial(_sizes, rate=cfg.rate),
    corrupt=functools.partial(
      corrupt,
      rate=cfg.rate,
      unit=UNITS[cfg.unit],
      mask_share=cfg.mask_share,
      random_share=cfg.random_share,
      pieces=len(tokenizer.pieces) if tokenizer else config.data.vocab_size,
    ),
    attention='bidirectional',
    scorer='left_to_right',
    continuation=continuation,
    scored_at_once=1,
    generates=('masks',),
  )


def check(config):
  """Raises UserError unless the shares of `objective.masked` fit together."""
  cfg = config.objective.masked
  # Shares as 0.85 and 0.15 need not add up to 1 exactly.
  if cfg.mask_share + cfg.random_share > 1 + 1e-6:
    raise errors.UserError(
      f'objective.masked.mask_share={cfg.mask_share} and '
      f'objective.masked.random_share={cfg.random_share} are more than 1 '
      'together; lower one'
    )


def count(maskable: int, rate: float) -> int:
  """How many of so many tokens are to be chosen, halves rounded to even.

  At least 1 where there is any: at the rate 0.15 1 of 3, 2 of 10, 38 of 255.
  """
  return max(1, round(rate * maskable)) if maskable else 0


def corrupt(
  record: types.Record,
  rng: np.random.Generator,
  *,
  rate: float,
  unit: Unit,
  mask_share: float,
  random_share: float,
  pieces: int,
) -> Sequence[types.Example]:
  """Chooses tokens, and hides most of them; at the rate 0.5, for instance:

  ids      [300 301 302 303 EOS]       a chunk that ends its document
  tokens   [BOS 300 MASK 302 303 EOS]  one chosen is masked, one left
  targets  [BOS 300  301 302 303 EOS]
  weights  [  0   0    1   0   1   0]
  order    [  0   0    0   0   0   0]

  Of the chosen, each by itself and whatever the unit, becomes MASK with the
  probability `mask_share`, a random piece of text (that it was already, at
  times) with `random_share`, and stays else. SpanBERT draws once a span there.

  Args:
    pieces: ids of text end here; each of NUM_SPECIAL, ..., pieces - 1 is as
      likely as a random piece.
  """
  maskable = masking.maskable(record.ids_L)
  k = count(len(maskable), rate)
  places = maskable[unit(record.word_L[maskable], k, rng)]
  draw = rng.random(len(places))
  random_ids = rng.integers(tokenizer_lib.NUM_SPECIAL, pieces, len(places))
  read = np.where(
    draw < mask_share + random_share, random_ids, record.ids_L[places]
  )
  read = np.where(draw < mask_share, tokenizer_lib.MASK, read)
  return [masking.example(record.ids_L, places, read=read)]


def continuation(context: np.ndarray, scored: np.ndarray) -> types.Example:
  """One token behind a context, at a mask with nothing to its right.

  context [300 301], scored [302]
  tokens   [BOS 300 301 MASK]
  targets  [BOS 300 301  302]
  weights  [  0   0   0    1]

  A proper distribution, but hardly like what is trained: there, text goes on
  behind nearly every mask.
  """
  if len(scored) != 1:
    raise ValueError(f'scores 1 token at a time, not {len(scored)}')
  return one_masked(context, scored, 0)


def one_masked(
  context: np.ndarray, scored: np.ndarray, index: int
) -> types.Example:
  """Token `index` of `scored` given all others, before and behind it.

  context [300], scored [301 302 303], index 1
  tokens   [BOS 300 301 MASK 303]
  targets  [BOS 300 301  302 303]
  weights  [  0   0   0    1   0]

  Their sum over `index` is the pseudo-log-likelihood (Salazar et al. 2020,
  equation 1), which is no likelihood.
  """
  ids_L = np.concatenate([context, scored])
  return masking.example(ids_L, np.array([len(context) + index]))


def tokens(word_M: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
  """Exactly k tokens; each set of k is as likely."""
  return masking.subset(len(word_M), k, rng)


def words(word_M: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
  """Whole words, drawn in random order; one that makes it more than k is left.

  That is at most k tokens, and more than k - the longest word: a word that was
  left out had no room, so that less than it was missing, and without one all
  words are chosen. Of a text of one long word there may be none.
  """
  bounds = _bounds(word_M)
  return fill(bounds, rng.permutation(len(bounds) - 1), k)


def fill(bounds: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
  """The tokens of those words that fit into k, taken in order.

  bounds [0 2 3 6], order [0 2 1], k 3 -> [0 1 2]

  Args:
    bounds: where each word begins, and the end.
  """
  lengths = np.diff(bounds).tolist()
  chosen = np.zeros(len(lengths), bool)
  for word in order.tolist():
    if lengths[word] <= k:
      chosen[word] = True
      k -= lengths[word]
      if not k:
        break
  return np.flatnonzero(np.repeat(chosen, lengths))


def spans(word_M: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
  """Exactly k tokens, in spans of whole words but for the last one's end.

  A span has 1 to 10 words, see SPAN_P, and begins at a word that is not chosen
  yet, each as likely; it may run into others. The last one ends with token
  number k, if need be within a word. So does SpanBERT's release, which picks
  the first word by one of its tokens.
  """
  bounds = _bounds(word_M)
  order = rng.permutation(len(bounds) - 1)
  lengths = rng.choice(len(_SPAN_SHARES), len(order), p=_SPAN_SHARES) + 1
  return cover(bounds, order, lengths, k)


def cover(
  bounds: np.ndarray, order: np.ndarray, lengths: np.ndarray, k: int
) -> np.ndarray:
  """The first k tokens of spans that begin at words in order.

  bounds [0 2 3 6 7], order [1 2 0 3], lengths [2 1 1 1], k 5
  -> [0 2 3 4 5]

  Args:
    bounds: where each word begins, and the end.
    lengths: words of each span; of one whose first word is chosen, not used.
  """
  last = len(bounds) - 1
  chosen = np.zeros(bounds[-1], bool)
  for word, length in zip(order.tolist(), lengths.tolist(), strict=True):
    start, stop = bounds[word], bounds[min(word + length, last)]
    if chosen[start]:
      continue
    new = start + np.flatnonzero(~chosen[start:stop])[:k]
    chosen[new] = True
    k -= len(new)
    if not k:
      break
  return np.flatnonzero(chosen)


# objective.masked.unit -> (word of each maskable token, k, rng) -> which of
# them are chosen, as numbers below len(word_M).
UNITS: dict[str, Unit] = {'token': tokens, 'word': words, 'span': spans}

_SPAN_SHARES = (1 - SPAN_P) ** np.arange(SPAN_LONGEST)
_SPAN_SHARES /= _SPAN_SHARES.sum()


def _bounds(word_M: np.ndarray) -> np.ndarray:
  """Where each word begins, and the end; [0] without a token."""
  new = np.diff(word_M, prepend=-1, append=-1) != 0
  return np.flatnonzero(new) if len(word_M) else np.zeros(1, np.int64)


def _sizes(n, rng, *, rate) -> Sequence[types.Size]:
  # No less than what is chosen: EOS may be among the n, and words fit in.
  del rng
  return [types.Size(tokens=n + 1, predictions=count(n, rate))]


FIELDS = field.section(
  'Masked language modelling.',
  rate=field.Field(
    0.15, 'Share of the tokens that is predicted.', least=1e-6, most=1
  ),
  unit=field.Field(
    'token',
    'What is masked together; see data.words for words.',
    choices=tuple(UNITS),
  ),
  mask_share=field.Field(
    0.8,
    'Share of the predicted tokens that [MASK] replaces.',
    least=0,
    most=1,
  ),
  random_share=field.Field(
    0.1,
    'Share of the predicted tokens that a random token replaces; the rest '
    'stay.',
    least=0,
    most=1,
  ),
)

SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder',),
  attention=('bidirectional',),
  fields=FIELDS,
  check=check,
)
