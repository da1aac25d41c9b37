"""Prefix language modelling (Liu et al. 2018; Raffel et al. 2020, section 3.2).

A chunk is split in two: the first part is read in both directions, the second
predicted from left to right.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from lm import types
from lm.objectives import base, layout, token_loss

SPLITS = ('uniform', 'fixed')


def make(config, tokenizer=None) -> base.Objective:
  """The objective; `objective.prefix` says where chunks are split."""
  del tokenizer
  cfg, length = config.objective.prefix, config.data.sequence_length
  lay = layout.make(config)
  share = cfg.share if cfg.split == 'fixed' else None
  raw_length, capacity = _capacity(share, length, lay)
  return base.Objective(
    raw_length=raw_length,
    capacity=capacity,
    sizes=functools.partial(_sizes, share=share, lay=lay),
    corrupt=functools.partial(corrupt, share=share, lay=lay),
    most=functools.partial(_most, share=share, lay=lay),
    loss=token_loss.make(config, 'prefix'),
    coefficients=token_loss.coefficients(config, 'prefix'),
    attention=lay.attention,
    scorer='conditional',
    continuation=lay.example,
    generates=('continuation',),
  )


def split(n: int, rng: np.random.Generator, share: float | None) -> int:
  """Tokens of the prefix of a chunk of n; at least one token follows it.

  Args:
    share: of the chunk that the prefix is, halves rounded to even; None: each
      of 0, ..., n - 1 is as likely.
  """
  if share is None:
    return int(rng.integers(n))
  return min(round(share * n), n - 1)


def corrupt(
  record: base.Record,
  rng: np.random.Generator,
  *,
  share: float | None,
  lay: layout.Layout,
) -> Sequence[types.Example]:
  """Splits a chunk; on a decoder, with a prefix of two tokens:

  ids      [10 11 12 13 EOS]     a chunk that ends its document
  tokens   [BOS 10 11 12 13]
  targets  [10 11 12 13 EOS]
  weights  [0 0 1 1 1]
  order    [0 0 0 1 2]
  """
  place = split(len(record.ids_L), rng, share)
  return [lay.example(record.ids_L[:place], record.ids_L[place:])]


def _sizes(n, rng, *, share, lay) -> Sequence[types.Size]:
  place = split(n, rng, share)
  return [lay.size(place, n - place)]


def _most(n, *, share, lay) -> types.Size:
  if share is not None:
    return _sizes(n, None, share=share, lay=lay)[0]
  ends = [lay.size(place, n - place) for place in (0, n - 1)]
  return types.Size(*map(max, *map(dataclasses.astuple, ends)))


def _capacity(
  share: float | None, length: int, lay: layout.Layout
) -> tuple[int, types.Size]:
  """The longest chunk, and a row's room."""
  if not lay.sides:
    most = 0
    if share is not None:
      most = layout.predictions(
        length - min(round(share * length), length - 1), length
      )
    return length, types.Size(tokens=length, predictions=most)
  if share is None:
    # Either side may have all of a chunk, so that a row holds two (Wang et al.
    # 2022, section 3.1). If chunks were as long as a side, no two would fit,
    # whatever their splits: with this much room 6 % of a row is padding.
    half = length // 2
    room = types.Size(tokens=length - half, encoder_tokens=half)
    return max(1, half - max(2, half // 50)), room
  # BOS stands on both sides; the encoder has room for some segments' more.
  more = length // 64
  raw = length - 1 - more
  inputs = min(round(share * raw), raw - 1) + 1 + more
  return raw, types.Size(tokens=length - inputs, encoder_tokens=inputs)
