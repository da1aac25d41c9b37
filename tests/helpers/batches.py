"""Batches that tests make by hand."""

from collections.abc import Sequence

import numpy as np

from lm import types
from lm.data import tokenizer


def one_a_row(
  tokens: Sequence[np.ndarray], size: int, length: int
) -> types.Batch:
  """Rows of one causal segment each, to be read and not to be learnt from.

  tokens [[1 2 3] [4]], size 2, length 4
  tokens_BxL   [[1 2 3 0] [4 0 0 0]]
  segment_BxL  [[1 1 1 0] [1 0 0 0]]

  Args:
    tokens: at most `size` arrays of at most `length` ids; rows without one
      are padding.
  """
  tokens_BxL, segment_BxL = np.zeros((2, size, length), np.int32)
  for row, ids in enumerate(tokens):
    tokens_BxL[row, : len(ids)] = ids
    segment_BxL[row, : len(ids)] = 1
  position_BxL = np.tile(np.arange(length, dtype=np.int32), (size, 1))
  return types.Batch(
    tokens_BxL=tokens_BxL,
    targets_BxL=np.zeros((size, length), np.int32),
    weights_BxL=np.zeros((size, length), np.float32),
    order_BxL=position_BxL,
    segment_BxL=segment_BxL,
    position_BxL=position_BxL,
  )


def causal_row(ids):
  """A batch of one row that predicts `ids`."""
  tokens = np.concatenate([[tokenizer.BOS], ids[:-1]])[None].astype(np.int32)
  position = np.arange(len(ids), dtype=np.int32)[None]
  return types.Batch(
    tokens_BxL=tokens,
    targets_BxL=ids[None],
    weights_BxL=np.ones_like(tokens, np.float32),
    order_BxL=position,
    segment_BxL=np.ones_like(tokens),
    position_BxL=position,
  )
