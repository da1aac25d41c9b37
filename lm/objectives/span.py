"""Span corruption (Raffel et al. 2020, sections 3.1.4 and 3.3, tables 3 to 7).

Some of a chunk's tokens are noise. The inputs lack them, and the targets are
either the noise or the whole chunk. The defaults are T5's.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from lm import errors, field, types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import layout as layout_lib, span_noise

# The contents of the targets, and the replacement of noise in the inputs.
TARGETS = ('spans', 'everything')
CORRUPTED = ('sentinel', 'mask', 'drop')

FIELDS = field.section(
  'Span corruption.',
  rate=field.Field(
    0.15, 'Share of the tokens that is noise.', least=1e-6, most=0.99
  ),
  mean=field.Field(
    3.0,
    'Mean number of tokens in a noise span.',
    least=1,
    read_with={'noise': ('spans',), 'unit': ('token', 'word')},
  ),
  target=field.Field(
    'spans', 'What is predicted: the spans, or the text.', choices=TARGETS
  ),
  corrupted=field.Field(
    'sentinel',
    'What stands in place of noise: a sentinel a span, a mask a token, or '
    'nothing.',
    choices=CORRUPTED,
  ),
  noise=field.Field(
    'spans',
    'Where noise lies: in spans, or at independent positions.',
    choices=span_noise.NOISES,
  ),
  unit=field.Field(
    'token',
    'What noise consists of; see data.words for words.',
    choices=span_noise.UNITS,
  ),
)

_BEGIN = tokenizer_lib.SENTINELS[0]


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective from `objective.span`.

  Pairs of the text a b c d e in which b and e are noise:

  target      corrupted  inputs       targets
  spans       sentinel   a S0 c d S1  S0 b S1 e   random spans, table 3
  spans       drop       a c d        b e         drop tokens, table 3
  spans       mask       a M c d M    b e         Song et al. 2019 (MASS)
  everything  mask       a M c d M    a b c d e   MASS-style, table 3
  everything  drop       a c d        a b c d e   Lewis et al. 2020, deletion
  everything  sentinel   a S0 c d S1  a b c d e   Lewis et al. 2020, infilling

  The other rows of table 3 have `noise='iid'`. Gap sentences (Zhang et al.
  2020) have `unit='sentence'`. EOS ends all targets; inputs end in it only at a
  document's end.
  """
  cfg, layout = config.objective.span, layout_lib.make(config)
  noise = span_noise.Noise(
    rate=cfg.rate,
    mean=cfg.mean,
    kind=cfg.noise,
    unit=cfg.unit,
    pieces=() if tokenizer is None else tokenizer.pieces,
  )
  form = Form(cfg.target, cfg.corrupted)

  def pair(record, rng):
    return corrupt(record, rng, noise=noise, form=form)

  # A chunk's length does not determine whether it ends in EOS.
  def lengths(n, rng):
    return _lengths(n, noise.measure(n, rng), form)

  def longest(n):
    return _lengths(n, [noise.bounds(n, end) for end in (False, True)], form)

  made = layout_lib.objective(
    config,
    pair=pair,
    lengths=lengths,
    longest=longest,
    check_length=functools.partial(
      _check_sentinels, cfg=cfg, length=config.data.sequence_length
    ),
  )
  if (cfg.target, cfg.corrupted) != ('spans', 'sentinel'):
    return made
  return dataclasses.replace(
    made,
    scorer='blocks',
    continuation=functools.partial(_continuation, layout=layout),
    scored_at_once=_scored_at_once(noise, made.raw_length),
    filling=layout.example,
    generates=('spans',),
  )


def check(config):
  """Raises UserError unless the fields of `objective.span` are consistent."""
  cfg = config.objective.span
  if cfg.unit == 'sentence' and cfg.noise == 'iid':
    raise errors.UserError(
      "objective.span.noise='iid' draws tokens or words; the sentences of "
      "objective.span.unit='sentence' are always drawn one by one: leave "
      'objective.span.noise out'
    )


def _check_sentinels(raw_length: int, *, cfg, length: int):
  """Raises UserError if a chunk can need more sentinels than there are.

  Args:
    raw_length: tokens of the longest chunk, in rows of `length` positions.
    cfg: `objective.span`.
  """
  if cfg.corrupted != 'sentinel':
    return
  noise = span_noise.Noise(cfg.rate, cfg.mean, cfg.noise, cfg.unit)
  needed = max(noise.bounds(n).max_sentinels for n in range(1, raw_length + 1))
  if needed > len(tokenizer_lib.SENTINELS):
    raise errors.UserError(
      f'data.sequence_length={length} with objective.span.rate={cfg.rate} and '
      f'objective.span.mean={cfg.mean} can need {needed} sentinels for '
      f'{raw_length} tokens of text, but there are '
      f'{len(tokenizer_lib.SENTINELS)}; lower data.sequence_length or the '
      'rate, or raise the mean'
    )


@dataclasses.dataclass(frozen=True)
class Form:
  """The form of inputs and targets, see `make`.

  target: a value of TARGETS.
  corrupted: a value of CORRUPTED.
  """

  target: str = 'spans'
  corrupted: str = 'sentinel'

  def pair(
    self, ids_L: np.ndarray, noise_L: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets.

    ids      [15 16 17 18 19]   noise    [0 1 1 0 0]
    inputs   [15 S0 18 19]      targets  [S0 16 17 S1 EOS]

    The sentinel before EOS stands for the text after the last span, and is
    absent if noise comes last. A document's EOS, which `noise_L` does not
    include, ends the inputs and is neither noise nor text.
    """
    text_L, end = ids_L[: len(noise_L)], ids_L[len(noise_L) :]
    inputs = np.concatenate([self._inputs(text_L, noise_L), end])
    targets = np.append(self._targets(text_L, noise_L), tokenizer_lib.EOS)
    return inputs.astype(np.int32), targets.astype(np.int32)

  def longest(
    self, n: int, bounds: span_noise.Bounds, end: bool = False
  ) -> tuple[int, int]:
    """Numbers of tokens of the longest inputs and of the longest targets.

    Args:
      n: tokens of the chunk.
      bounds: bounds of its noise.
      end: whether the last of the n tokens is EOS.
    """
    inputs, targets = n, n - end + 1
    if self.corrupted == 'sentinel':
      inputs = n - bounds.min_tokens + min(bounds.max_runs, bounds.min_tokens)
    elif self.corrupted == 'drop':
      inputs = n - bounds.min_tokens
    if self.target == 'spans':
      targets = bounds.max_tokens + 1
      if self.corrupted == 'sentinel':
        targets += bounds.max_sentinels
    return inputs, targets

  def _inputs(self, text_L: np.ndarray, noise_L: np.ndarray) -> np.ndarray:
    if self.corrupted == 'drop':
      return text_L[~noise_L]
    if self.corrupted == 'mask':
      return np.where(noise_L, tokenizer_lib.MASK, text_L)
    starts_L = span_noise.run_starts(noise_L)
    marked_L = np.where(starts_L, _BEGIN - 1 + np.cumsum(starts_L), text_L)
    return marked_L[~noise_L | starts_L]

  def _targets(self, text_L: np.ndarray, noise_L: np.ndarray) -> np.ndarray:
    if self.target == 'everything':
      return text_L
    targets = text_L[noise_L]
    if self.corrupted != 'sentinel':
      return targets
    starts = span_noise.run_starts(noise_L)[noise_L]
    count = int(np.count_nonzero(starts))
    # Each token moves right by the number of sentinels before it.
    places = np.arange(len(targets)) + np.cumsum(starts)
    closing = not len(noise_L) or not noise_L[-1]
    marked = np.empty(len(targets) + count + closing, np.int32)
    marked[places] = targets
    marked[places[starts] - 1] = _BEGIN + np.arange(count)
    if closing:
      marked[-1] = _BEGIN + count
    return marked


def lengths(window: int, rate: float, mean: float) -> tuple[int, int, int]:
  """The lengths that fill a window of inputs, as T5's `random_spans_helper`.

  window 256, rate .15, mean 3 -> raw 284, inputs 256, targets 58

  T5 counts one EOS on either side, which here is the BOS of the encoder and the
  EOS of the targets. (At the rate .5, T5 subtracts one token, so that both
  sides have the same length; this function does not.)

  Returns:
    Numbers of tokens of text, of the inputs with BOS, and of the targets.
  """
  noise, form = span_noise.Noise(rate, mean), Form()

  def sides(n: int) -> tuple[int, int]:
    count, runs = noise.counts(n)
    bounds = span_noise.Bounds(count, count, runs, runs)
    inputs, targets = form.longest(n, bounds)
    return inputs + 1, targets

  raw = 1
  while sides(raw + 1)[0] <= window:
    raw += 1
  return raw, *sides(raw)


def corrupt(
  record: types.Record,
  rng: np.random.Generator,
  *,
  noise: span_noise.Noise,
  form: Form,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws noise and forms a pair, here T5's with the noise [0 1 1 0 1]:

  ids      [15 16 17 18 19 EOS]     a chunk that ends its document
  inputs   [15 S0 18 S1 EOS]
  targets  [S0 16 17 S1 19 EOS]
  """
  noise_L = noise.mask(record.ids_L, record.word_L, rng)
  return form.pair(record.ids_L, noise_L)


def _lengths(
  n: int, bounds: Sequence[span_noise.Bounds], form: Form
) -> list[tuple[int, int]]:
  """Tokens of (inputs, targets) of a chunk without EOS, and of one with it."""
  without, ending = bounds
  return [form.longest(n, without), form.longest(n, ending, end=True)]


def _scored_at_once(noise: span_noise.Noise, raw_length: int) -> int:
  """Number of tokens in a block that is scored: that of a typical span."""
  tokens, _ = noise.counts(max(raw_length, 1))
  if noise.unit == 'sentence':
    return tokens
  mean = 1 / (1 - noise.rate) if noise.kind == 'iid' else noise.mean
  return min(max(1, round(mean)), tokens)


def _continuation(
  context: np.ndarray, scored: np.ndarray, *, layout: layout_lib.Layout
) -> types.Example:
  """The Example in which `scored` is the only span, at the end of the text.

  context [10 11], scored [12 13]; on a decoder
  tokens   [BOS 10 11 S0 S0 12  13]
  targets  [ 10 11 S0 S0 12 13 EOS]
  weights  [  0  0  0  0  1  1   0]
  """
  inputs = np.append(context, _BEGIN)
  targets = np.concatenate([[_BEGIN], scored, [tokenizer_lib.EOS]])
  example = layout.example(inputs, targets)
  weights_L = np.zeros(len(example.weights_L), np.float32)
  weights_L[-1 - len(scored) : -1] = 1
  return dataclasses.replace(example, weights_L=weights_L)


SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder_decoder', 'decoder'),
  attention=('prefix', 'causal'),
  data='text',
  fields=FIELDS,
  reads=('objective.inputs',),
  check=check,
)
