"""Masked language modelling (Devlin et al. 2019, section 3.1).

A share of the tokens is drawn each time that a text is read (dynamic masking:
Liu et al. 2019, section 4.1), and predicted from all of the others. There are
neither sentence pairs nor a second loss. Tokens are selected one by one, in
whole words as in BERT's release of May 2019, or in spans of words (Joshi et al.
2020, section 3.1, without its span-boundary objective), see UNITS.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from lm import errors, field, types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import layout, masking

# P(length) = p (1 - p)^(length - 1), truncated after the longest. The paper
# says that lengths are clipped; its mean of 3.8 words is that of the truncated
# distribution, since clipped lengths have a mean of 4.5.
SPAN_P, SPAN_LONGEST = 0.2, 10

# (word_M, k, rng) -> indices of the selected tokens, where `word_M` is the word
# of each maskable token and k the number of tokens to select.
Select = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def make(
  config, tokenizer: tokenizer_lib.Tokenizer | None = None
) -> types.Objective:
  """Builds the objective from `objective.masked`."""
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
      select=UNITS[cfg.unit],
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
  """Raises UserError unless the shares of `objective.masked` are consistent."""
  cfg = config.objective.masked
  # Floats such as 0.85 and 0.15 need not add up to 1 exactly.
  if cfg.mask_share + cfg.random_share > 1 + 1e-6:
    raise errors.UserError(
      f'objective.masked.mask_share={cfg.mask_share} and '
      f'objective.masked.random_share={cfg.random_share} are more than 1 '
      'together; lower one'
    )


def count(maskable: int, rate: float) -> int:
  """Number of tokens to select, with halves rounded to even.

  It is at least 1 if there is any token: at the rate 0.15, 1 of 3, 2 of 10, 38
  of 255.
  """
  return max(1, round(rate * maskable)) if maskable else 0


def corrupt(
  record: types.Record,
  rng: np.random.Generator,
  *,
  rate: float,
  select: Select,
  mask_share: float,
  random_share: float,
  pieces: int,
) -> Sequence[types.Example]:
  """Selects tokens and replaces most of them, here at the rate 0.5:

  ids      [300 301 302 303 EOS]       a chunk that ends its document
  tokens   [BOS 300 MASK 302 303 EOS]  one selected is masked, one kept
  targets  [BOS 300  301 302 303 EOS]
  weights  [  0   0    1   0   1   0]
  order    [  0   0    0   0   0   0]

  Each selected token becomes MASK with the probability `mask_share`, a random
  piece of text, perhaps itself, with the probability `random_share`, and is
  kept otherwise. These draws are independent, where SpanBERT draws once a span.

  Args:
    pieces: end of the ids of text; random pieces are uniform in NUM_SPECIAL,
      ..., pieces - 1.
  """
  maskable = masking.maskable(record.ids_L)
  k = count(len(maskable), rate)
  places = maskable[select(record.word_L[maskable], k, rng)]
  draw = rng.random(len(places))
  random_ids = rng.integers(tokenizer_lib.NUM_SPECIAL, pieces, len(places))
  read = np.where(
    draw < mask_share + random_share, random_ids, record.ids_L[places]
  )
  read = np.where(draw < mask_share, tokenizer_lib.MASK, read)
  return [masking.example(record.ids_L, places, read=read)]


def continuation(context: np.ndarray, scored: np.ndarray) -> types.Example:
  """One token after a context, at a mask with nothing to its right.

  context [300 301], scored [302]
  tokens   [BOS 300 301 MASK]
  targets  [BOS 300 301  302]
  weights  [  0   0   0    1]

  This is a proper distribution, but unlike training, where text follows nearly
  every mask.
  """
  if len(scored) != 1:
    raise ValueError(f'scores 1 token at a time, not {len(scored)}')
  return one_masked(context, scored, 0)


def one_masked(
  context: np.ndarray, scored: np.ndarray, index: int
) -> types.Example:
  """Token `index` of `scored` given all others, before and after it.

  context [300], scored [301 302 303], index 1
  tokens   [BOS 300 301 MASK 303]
  targets  [BOS 300 301  302 303]
  weights  [  0   0   0    1   0]

  The log-probabilities' sum over `index` is the pseudo-log-likelihood (Salazar
  et al. 2020, equation 1), which is no likelihood.
  """
  ids_L = np.concatenate([context, scored])
  return masking.example(ids_L, np.array([len(context) + index]))


def select_tokens(
  word_M: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
  """Selects exactly k tokens; each set of k is equally likely."""
  return masking.subset(len(word_M), k, rng)


def select_words(
  word_M: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
  """Selects whole words in random order, skipping those that would exceed k.

  The result has at most k tokens, and more than k minus the longest word: a
  word is skipped only if fewer tokens than its length are missing, and if none
  is skipped, all words are selected. A text of one long word may yield none.
  """
  bounds = _bounds(word_M)
  return fill(bounds, rng.permutation(len(bounds) - 1), k)


def fill(bounds: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
  """Tokens of the words that fit into k, tried in the given order.

  bounds [0 2 3 6], order [0 2 1], k 3 -> [0 1 2]

  Args:
    bounds: the start of each word, and the end of the last.
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


def select_spans(
  word_M: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
  """Selects exactly k tokens, in spans of whole words except the last one.

  A span has 1 to 10 words, see SPAN_P, starts at a word that is not selected
  yet, each equally likely, and may overlap others. The last span ends with the
  k-th token, within a word if necessary, as in SpanBERT's release, which draws
  the first word by one of its tokens.
  """
  bounds = _bounds(word_M)
  order = rng.permutation(len(bounds) - 1)
  lengths = rng.choice(len(_SPAN_SHARES), len(order), p=_SPAN_SHARES) + 1
  return cover(bounds, order, lengths, k)


def cover(
  bounds: np.ndarray, order: np.ndarray, lengths: np.ndarray, k: int
) -> np.ndarray:
  """The first k tokens of spans that start at words in the given order.

  bounds [0 2 3 6 7], order [1 2 0 3], lengths [2 1 1 1], k 5
  -> [0 2 3 4 5]

  Args:
    bounds: the start of each word, and the end of the last.
    lengths: number of words of each span; a span is skipped if its first word
      is already selected.
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


# objective.masked.unit -> the function that selects in such units.
UNITS: dict[str, Select] = {
  'token': select_tokens,
  'word': select_words,
  'span': select_spans,
}

_SPAN_SHARES = (1 - SPAN_P) ** np.arange(SPAN_LONGEST)
_SPAN_SHARES /= _SPAN_SHARES.sum()


def _bounds(word_M: np.ndarray) -> np.ndarray:
  """The start of each word, and the end of the last; [0] without a token."""
  new = np.diff(word_M, prepend=-1, append=-1) != 0
  return np.flatnonzero(new) if len(word_M) else np.zeros(1, np.int64)


def _sizes(n, rng, *, rate) -> Sequence[types.Size]:
  # Upper bounds: EOS may be among the n, and words may fill less than the rate.
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
  inputs_hold_targets=True,
  fields=FIELDS,
  check=check,
)
