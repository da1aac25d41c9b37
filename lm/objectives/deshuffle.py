"""Deshuffling (Raffel et al. 2020, section 3.3.1, table 4; Liu et al. 2019a).

A chunk's tokens are read in random order, and predicted in their own.
"""

import numpy as np

from lm import types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import layout


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective, which has no fields of its own."""
  del tokenizer
  return layout.objective(config, pair=shuffle, lengths=lambda n, rng: [(n, n)])


def shuffle(
  record: types.Record, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Shuffles the tokens of a chunk; an EOS at its end stays in place.

  ids      [10 11 12 13 EOS]     a chunk that ends its document
  inputs   [12 10 13 11 EOS]
  targets  [10 11 12 13 EOS]
  """
  text = len(record.ids_L) - int(record.ids_L[-1] == tokenizer_lib.EOS)
  inputs = np.array(record.ids_L)
  inputs[:text] = rng.permutation(inputs[:text])
  return inputs, record.ids_L


SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder_decoder', 'decoder'),
  attention=('prefix', 'causal'),
  inputs_hold_targets=True,
  data='text',
  reads=('objective.inputs',),
)
