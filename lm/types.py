"""The values that pass between data, objectives and models.

Axes, in every array's name: B batch, L length, D width, H heads, K head size,
F feed-forward, V vocabulary, N layers.
"""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
  """One segment of a row, on the host.

  tokens_L: int32, what the model reads.
  targets_L: int32, what it must predict at that position.
  weights_L: float32, loss weight of the position; 0: nothing is predicted.
  order_L: int32, generation order: position i may see j when
    order[j] <= order[i]. Causal is 0, 1, 2, ...
  """

  tokens_L: np.ndarray
  targets_L: np.ndarray
  weights_L: np.ndarray
  order_L: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of packed examples, each array [B, L].

  segment_BxL: int32, example within the row from 1; 0 is padding. Attention
    and loss never cross it.
  position_BxL: int32, position within the segment, from 0.
  """

  tokens_BxL: jax.Array | np.ndarray
  targets_BxL: jax.Array | np.ndarray
  weights_BxL: jax.Array | np.ndarray
  order_BxL: jax.Array | np.ndarray
  segment_BxL: jax.Array | np.ndarray
  position_BxL: jax.Array | np.ndarray
