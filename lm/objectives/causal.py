"""Next-token prediction, left to right (Bengio et al. 2003, equation 1)."""

from collections.abc import Sequence

import numpy as np

from lm import types
from lm.objectives import layout

_NOTHING = np.zeros(0, np.int32)


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective for rows of `data.sequence_length` positions."""
  del tokenizer
  length = config.data.sequence_length
  return types.Objective(
    raw_length=length,
    capacity=types.Size(tokens=length),
    sizes=lambda n, rng: [types.Size(tokens=n)],
    corrupt=corrupt,
    upper_bound=lambda n: types.Size(tokens=n),
    attention='causal',
    scorer='exact',
    continuation=layout.causal_decoder,
    generates=('continuation',),
  )


def corrupt(
  record: types.Record, rng: np.random.Generator
) -> Sequence[types.Example]:
  """Shifts a chunk right by one after BOS; every token of it is a target.

  ids      [10 11 12 EOS]     a chunk that ends its document
  tokens   [BOS 10 11 12]
  targets  [10 11 12 EOS]
  weights  [1 1 1 1]
  order    [0 1 2 3]
  """
  del rng
  return [layout.causal_decoder(_NOTHING, record.ids_L)]


SPEC = types.ObjectiveSpec(
  make=make, architectures=('decoder',), attention=('causal',)
)
