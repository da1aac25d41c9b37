"""T5's relative positions: a learned bias on the scores of each head.

Raffel et al. 2020, section 2.1: distances fall into 32 buckets, half of them
exact, the others on a logarithmic scale up to 128, beyond which all distances
share the last bucket. The layers of a stack share one table.

Segments are contiguous, so distances within a segment equal distances in the
row, and one bias serves all rows.

Axes besides the project's legend: `M` keys, `Z` buckets, `T` new positions.
"""

import jax
import jax.numpy as jnp
import numpy as np

BUCKETS = 32
FURTHEST = 128


def bucket(distance: np.ndarray, *, bidirectional: bool) -> np.ndarray:
  """The bucket of each distance, position of the key minus that of the query.

  distance        -200 -20 -1 0 1 20 200
  causal            31  17  1 0 0  0   0
  bidirectional     15  10  1 0 17 26 31
  """
  buckets = BUCKETS // 2 if bidirectional else BUCKETS
  after = (distance > 0) * (buckets if bidirectional else 0)
  size = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
  exact = buckets // 2
  share = np.log(np.maximum(size, 1) / exact) / np.log(FURTHEST / exact)
  far = exact + (share * (buckets - exact)).astype(np.int64)
  return after + np.where(size < exact, size, np.minimum(far, buckets - 1))


def bias(
  table_ZxH: jax.Array, queries: int, keys: int, *, bidirectional: bool
) -> jax.Array:
  """Bias on the scores of a row that attends to itself.

  Returns:
    [1, H, queries, keys] in float32.
  """
  # Distance d is at index d, counted from the end if it is negative.
  around = queries + keys
  distance = np.arange(around)
  distance = np.where(distance < keys, distance, distance - around)
  by_distance_xH = table_ZxH[bucket(distance, bidirectional=bidirectional)]
  # Each row starts one place earlier in the circle than the row above it. The
  # gradient of a lookup per pair would be a scatter.
  heads = table_ZxH.shape[1]
  rows = jnp.broadcast_to(by_distance_xH.T[:, None], (heads, queries, around))
  skewed = rows.reshape(heads, -1)[:, : queries * (around - 1)]
  return skewed.reshape(1, heads, queries, around - 1)[..., :keys]


def bias_at(
  table_ZxH: jax.Array,
  position_BxT: jax.Array,
  keys: int,
  *,
  bidirectional: bool,
) -> jax.Array:
  """Bias on the scores of new positions with the keys of a cache.

  Returns:
    [B, H, T, keys] in float32.
  """
  reach = np.arange(-FURTHEST, FURTHEST + 1)
  by_distance_xH = table_ZxH[bucket(reach, bidirectional=bidirectional)]
  distance_BxTxM = jnp.arange(keys)[None, None, :] - position_BxT[:, :, None]
  place_BxTxM = jnp.clip(distance_BxTxM, -FURTHEST, FURTHEST) + FURTHEST
  return jnp.moveaxis(by_distance_xH[place_BxTxM], -1, 1)
