"""Supervised pairs, source to target (Sutskever et al. 2014, equation 1).

The target is predicted from left to right, given all of the source.
"""

import numpy as np

from lm import field, types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import layout as layout_lib

FIELDS = field.section(
  'Source to target.',
  target_share=field.Field(
    0.5,
    "Share of the positions that is the decoder's.",
    least=0.01,
    most=0.99,
    read_with={'model.architecture': ('encoder_decoder',)},
  ),
)


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective for pairs of the text and the target column."""
  del tokenizer
  length, layout = config.data.sequence_length, layout_lib.make(config)
  capacity = types.Size(tokens=length)
  if layout.sides:
    share = config.objective.supervised.target_share
    targets = min(max(1, round(share * length)), length - 1)
    capacity = types.Size(tokens=targets, encoder_tokens=length - targets)

  def continuation(context, scored):
    """The start `scored` of a target, given a source without its SEP."""
    return layout.example(np.append(context, tokenizer_lib.SEP), scored)

  return layout_lib.objective(
    config,
    pair=split_pair,
    lengths=lambda n, rng: [n],
    capacity=(length, capacity),
    upper_bound=None,
    continuation=continuation,
    generates=('target',),
  )


def split_pair(
  record: types.Record, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Splits a pair after its separator.

  ids      [10 11 SEP 20 21 EOS]
  inputs   [10 11 SEP]            the encoder reads them after BOS
  targets  [20 21 EOS]

  and on a decoder alone
  tokens   [BOS 10  11 SEP 20  21]
  targets  [ 10 11 SEP  20 21 EOS]
  weights  [  0  0   0   1  1   1]
  order    [  0  0   0   0  1   2]
  """
  del rng
  # Text contains no special token, so the first separator is the pair's.
  place = int(np.argmax(record.ids_L == tokenizer_lib.SEP)) + 1
  return record.ids_L[:place], record.ids_L[place:]


SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder_decoder', 'decoder'),
  attention=('prefix', 'causal'),
  data='pairs',
  fields=FIELDS,
  reads=('objective.inputs',),
  former_name='sequence',
)
