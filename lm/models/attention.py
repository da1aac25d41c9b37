"""Who sees whom, and how queries, keys and values meet.

Axes besides the project's legend: `M` keys, `G` groups of query heads that
share a key-value head, `R` query heads in a group (H = G x R).
"""

import itertools

import jax
import jax.numpy as jnp

# A query block of the causal path has at least this many positions.
_MIN_BLOCK = 64
_MAX_BLOCKS = 4


def attention_mask(
  query_order_BxL: jax.Array,
  key_order_BxM: jax.Array,
  query_segment_BxL: jax.Array,
  key_segment_BxM: jax.Array,
) -> jax.Array:
  """Query i sees key j if j is no later in order and in the same segment.

  Padding is segment 0 and may see padding, so no softmax row is empty.

  order    0 1 2 0 1     mask  1 . . . .
  segment  1 1 1 2 2           1 1 . . .
                               1 1 1 . .
                               . . . 1 .
                               . . . 1 1
  """
  earlier_BxLxM = key_order_BxM[:, None, :] <= query_order_BxL[:, :, None]
  together_BxLxM = key_segment_BxM[:, None, :] == query_segment_BxL[:, :, None]
  return earlier_BxLxM & together_BxLxM


def reference(
  q_BxLxHxK: jax.Array,
  k_BxMxGxK: jax.Array,
  v_BxMxGxK: jax.Array,
  mask_BxLxM: jax.Array,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

  Grouped queries (Ainslie et al. 2023): head h reads key-value head h // R.
  The softmax is in float32. Every row of the mask must allow some key.

  Returns:
    [B, L, H, K] in the dtype of the values.
  """
  B, L, H, K = q_BxLxHxK.shape
  G = k_BxMxGxK.shape[2]
  q_BxLxGxRxK = q_BxLxHxK.reshape(B, L, G, H // G, K) * K**-0.5
  scores_BxGxRxLxM = jnp.einsum(
    'blgrk,bmgk->bgrlm',
    q_BxLxGxRxK,
    k_BxMxGxK,
    preferred_element_type=jnp.float32,
  )
  scores_BxGxRxLxM = jnp.where(
    mask_BxLxM[:, None, None], scores_BxGxRxLxM, -jnp.inf
  )
  weights_BxGxRxLxM = jax.nn.softmax(scores_BxGxRxLxM, axis=-1)
  out_BxLxGxRxK = jnp.einsum(
    'bgrlm,bmgk->blgrk', weights_BxGxRxLxM.astype(v_BxMxGxK.dtype), v_BxMxGxK
  )
  return out_BxLxGxRxK.reshape(B, L, H, K)


def attend(
  q_BxLxHxK: jax.Array,
  k_BxLxGxK: jax.Array,
  v_BxLxGxK: jax.Array,
  *,
  attention: str,
  order_BxL: jax.Array,
  segment_BxL: jax.Array,
) -> jax.Array:
  """Self-attention over packed rows; see `reference` for shapes.

  Args:
    attention: what `order` amounts to, known before compiling: with `causal`
      (order never falls within a segment and rises at each position) keys
      after a block of queries are skipped, about half of the square.
  """
  if attention != 'causal':
    raise ValueError(f"unknown attention {attention!r}; choose from 'causal'")
  length = q_BxLxHxK.shape[1]
  outs = []
  for start, end in causal_blocks(length):
    mask_BxlxM = attention_mask(
      order_BxL[:, start:end],
      order_BxL[:, :end],
      segment_BxL[:, start:end],
      segment_BxL[:, :end],
    )
    outs.append(
      reference(
        q_BxLxHxK[:, start:end],
        k_BxLxGxK[:, :end],
        v_BxLxGxK[:, :end],
        mask_BxlxM,
      )
    )
  return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)


def causal_blocks(length: int) -> list[tuple[int, int]]:
  """Query blocks [start, end) that cover `length` positions.

  256 -> (0, 64) (64, 128) (128, 192) (192, 256)
  """
  blocks = max(1, min(_MAX_BLOCKS, length // _MIN_BLOCK))
  edges = [length * i // blocks for i in range(blocks + 1)]
  return list(itertools.pairwise(edges))


def attend_cached(
  q_BxTxHxK: jax.Array,
  k_BxMxGxK: jax.Array,
  v_BxMxGxK: jax.Array,
  position_BxT: jax.Array,
) -> jax.Array:
  """Attention of new positions to a cache in which key j is position j."""
  keys_M = jnp.arange(k_BxMxGxK.shape[1])
  mask_BxTxM = keys_M[None, None, :] <= position_BxT[:, :, None]
  return reference(q_BxTxHxK, k_BxMxGxK, v_BxMxGxK, mask_BxTxM)


def rotate(
  x_BxLxHxK: jax.Array, position_BxL: jax.Array, base: float
) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, equation 34).

  Pairs are (i, i + K/2), the layout of the Llama checkpoints, not neighbours
  as in the paper; the two differ by a permutation of K. Angles in float32.
  """
  half = x_BxLxHxK.shape[-1] // 2
  frequency_k = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BxLx1xk = (
    position_BxL[:, :, None, None].astype(jnp.float32)
    * frequency_k[None, None, None, :]
  )
  sin, cos = jnp.sin(angle_BxLx1xk), jnp.cos(angle_BxLx1xk)
  first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x_BxLxHxK.dtype)
