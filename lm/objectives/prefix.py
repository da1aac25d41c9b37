"""Prefix language modelling (Liu et al. 2018; Raffel et al. 2020, section 3.2).

A chunk is split in two: the first part is read in both directions, and the
second is predicted from left to right.
"""

import numpy as np

from lm import field, types
from lm.objectives import layout as layout_lib

SPLITS = ('uniform', 'fixed')

FIELDS = field.section(
  'Prefix language modelling.',
  split=field.Field(
    'uniform',
    'Where the prefix ends: anywhere, or at a share of the text.',
    choices=SPLITS,
  ),
  share=field.Field(
    0.5,
    'Share of the text that the prefix is.',
    least=0,
    most=0.99,
    read_with={'split': ('fixed',)},
  ),
)


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective from `objective.prefix`."""
  del tokenizer
  cfg, layout = config.objective.prefix, layout_lib.make(config)
  share = cfg.share if cfg.split == 'fixed' else None

  def pair(record, rng):
    return split_pair(record, rng, share=share)

  def lengths(n, rng):
    place = split(n, rng, share)
    return [(place, n - place)]

  def longest(n):
    if share is not None:
      return lengths(n, None)
    return [(0, n), (n - 1, 1)]

  return layout_lib.objective(
    config,
    pair=pair,
    lengths=lengths,
    longest=longest,
    capacity=_capacity(share, config.data.sequence_length, layout.sides),
    scorer='conditional',
    continuation=layout.example,
    generates=('continuation',),
  )


def split(n: int, rng: np.random.Generator, share: float | None) -> int:
  """Number of tokens in the prefix of a chunk of n, at most n - 1.

  Args:
    share: the prefix's share of the chunk, with halves rounded to even; None:
      the number is uniform in 0, ..., n - 1.
  """
  if share is None:
    return int(rng.integers(n))
  return min(round(share * n), n - 1)


def split_pair(
  record: types.Record, rng: np.random.Generator, *, share: float | None
) -> tuple[np.ndarray, np.ndarray]:
  """Splits a chunk, here with a prefix of two tokens:

  ids      [10 11 12 13 EOS]     a chunk that ends its document
  inputs   [10 11]
  targets  [12 13 EOS]

  and on a decoder
  tokens   [BOS 10 11 12 13]
  targets  [10 11 12 13 EOS]
  weights  [0 0 1 1 1]
  order    [0 0 0 1 2]
  """
  place = split(len(record.ids_L), rng, share)
  return record.ids_L[:place], record.ids_L[place:]


def _capacity(
  share: float | None, length: int, sides: bool
) -> tuple[int, types.Size]:
  """Number of tokens of the longest chunk, and a row's capacity."""
  if not sides:
    predictions = 0
    if share is not None:
      predictions = layout_lib.predictions(
        length - min(round(share * length), length - 1), length
      )
    return length, types.Size(tokens=length, predictions=predictions)
  if share is None:
    # Either side may hold all of a chunk, so that a row holds two (Wang et al.
    # 2022, section 3.1). Two chunks as long as a side would never fit, however
    # they are split: with this reserve 6 % of a row is padding.
    half = length // 2
    capacity = types.Size(tokens=length - half, encoder_tokens=half)
    return max(1, half - max(2, half // 50)), capacity
  # Both sides have a BOS; the encoder has a reserve for those of more segments.
  more = length // 64
  raw = length - 1 - more
  inputs = min(round(share * raw), raw - 1) + 1 + more
  return raw, types.Size(tokens=length - inputs, encoder_tokens=inputs)


SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('decoder', 'encoder_decoder'),
  attention=('prefix', 'causal'),
  fields=FIELDS,
  reads=('objective.inputs',),
)
