"""Selection of the pairs that fit a row; a pair is never cut."""

import numpy as np

from lm import errors, types
from lm.data import store


def fitting(split: store.Split, objective: types.Objective) -> np.ndarray:
  """The numbers of the pairs that fit a row, int64, ascending.

  Raises:
    UserError: the split has no pairs, or none fits.
  """
  if split.input_lengths is None:
    raise errors.UserError(
      f'{split.directory} holds no pairs, which this objective is trained on; '
      'name the column of their targets with data.target_column'
    )
  inputs = split.input_lengths
  lengths_Dx2 = np.stack([inputs, split.lengths - inputs], axis=1)
  # There are few different lengths: each combination is checked once.
  lengths_Ux2, unique_D = np.unique(lengths_Dx2, axis=0, return_inverse=True)
  fits_U = [_fits(tuple(n), objective) for n in lengths_Ux2.tolist()]
  found = np.flatnonzero(np.array(fits_U, bool)[unique_D.reshape(-1)])
  if not len(found):
    raise errors.UserError(
      f'none of the {len(split)} pairs in {split.directory} fits a row of '
      f'{_describe(objective)}; raise data.sequence_length, give shorter '
      'pairs, or change how the objective shares a row between its sides'
    )
  return found


def left_out(
  split: store.Split, objective: types.Objective, kept: int, name: str
) -> str:
  """Message on the pairs that do not fit a row; '' if all do.

  Args:
    kept: number of the pairs that fit.
    name: name of the split.
  """
  number = len(split) - kept
  if not number:
    return ''
  return (
    f'left out: {number:,} of {len(split):,} {name} pairs, which do not fit a '
    f'row of {_describe(objective)}'
  )


def _fits(n: tuple[int, int], objective: types.Objective) -> bool:
  """Whether a pair with sides of `n` tokens fits, whatever is drawn."""
  capacity = objective.capacity
  return all(
    size.tokens <= capacity.tokens
    and size.encoder_tokens <= capacity.encoder_tokens
    and size.predictions <= (capacity.predictions or size.predictions)
    for size in objective.sizes(n, np.random.default_rng(0))
  )


def _describe(objective: types.Objective) -> str:
  capacity = objective.capacity
  if not capacity.encoder_tokens:
    return f'{capacity.tokens} positions'
  return (
    f'{capacity.encoder_tokens} positions for the source and '
    f'{capacity.tokens} for the target'
  )
