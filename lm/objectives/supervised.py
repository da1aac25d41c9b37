"""Source to target: supervised pairs (Sutskever et al. 2014, equation 1).

The target is predicted from left to right, given all of the source.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lm import types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import base, layout, token_loss


def make(config, tokenizer=None) -> base.Objective:
  """The objective, on pairs of `data.text_column` and `data.target_column`."""
  del tokenizer
  length, lay = config.data.sequence_length, layout.make(config)
  capacity = types.Size(tokens=length)
  if lay.sides:
    share = config.objective.sequence.target_share
    targets = min(max(1, round(share * length)), length - 1)
    capacity = types.Size(tokens=targets, encoder_tokens=length - targets)
  return base.Objective(
    raw_length=length,
    capacity=capacity,
    sizes=lambda n, rng: [lay.size(*n)],
    corrupt=functools.partial(corrupt, lay=lay),
    loss=token_loss.make(config, 'sequence'),
    coefficients=token_loss.coefficients(config, 'sequence'),
    attention=lay.attention,
    scorer='none',
    continuation=functools.partial(_continuation, lay=lay),
    generates=('target',),
    pairs=True,
  )


def corrupt(
  record: base.Record, rng: np.random.Generator, *, lay: layout.Layout
) -> Sequence[types.Example]:
  """Splits a pair behind its separator.

  ids      [10 11 SEP 20 21 EOS]
  inputs   [10 11 SEP]            what the encoder reads behind BOS
  targets  [20 21 EOS]

  and on a decoder alone
  tokens   [BOS 10  11 SEP 20  21]
  targets  [ 10 11 SEP  20 21 EOS]
  weights  [  0  0   0   1  1   1]
  order    [  0  0   0   0  1   2]
  """
  del rng
  # Of text no token is special: the first separator is the pair's.
  place = int(np.argmax(record.ids_L == tokenizer_lib.SEP)) + 1
  return [lay.example(record.ids_L[:place], record.ids_L[place:])]


def _continuation(
  context: np.ndarray, scored: np.ndarray, *, lay: layout.Layout
) -> types.Example:
  """The beginning `scored` of a target, given a source without its SEP."""
  return lay.example(np.append(context, tokenizer_lib.SEP), scored)
