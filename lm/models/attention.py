"""Attention: masks, implementations, and the choice between them.

`reference` is exact for any mask; every faster implementation must agree with
it at all positions that are not padding.

Axes besides the project's legend: `M` keys, `G` groups of query heads that
share a key-value head, `R` query heads in a group (H = G x R).
"""

import itertools

import jax
import jax.numpy as jnp

from lm import errors
from lm.models import attention_kernels

# Patterns of attention that the `order` of a batch can express; an objective's
# pattern is known before compiling.
ATTENTIONS = ('causal', 'bidirectional', 'prefix')

# Minimum number of positions in a block of queries.
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
  bias_BxHxLxM: jax.Array | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

  Grouped queries (Ainslie et al. 2023): head h reads key-value head h // R.
  The softmax is in float32. Every row of the mask must allow some key.

  Args:
    bias_BxHxLxM: added to the scores; its B may be 1.

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
  if bias_BxHxLxM is not None:
    scores_BxGxRxLxM += bias_BxHxLxM.reshape(
      -1, G, H // G, *bias_BxHxLxM.shape[2:]
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
  implementation: str,
  mesh: jax.sharding.Mesh | None = None,
  bias_BxHxLxL: jax.Array | None = None,
) -> jax.Array:
  """Self-attention over packed rows; see `reference` for shapes.

  Args:
    attention: pattern of `order` within each segment. `causal`: it increases
      at each position. `bidirectional`: it is constant. `prefix`: it is 0 at
      the first positions and increases from there.
    implementation: a name of `IMPLEMENTATIONS`; see `choose`.
    mesh: the devices that hold the arrays; only the kernels need it.
    bias_BxHxLxL: see `reference`; the kernels do not support it.
  """
  if attention not in ATTENTIONS:
    raise ValueError(
      f'unknown attention {attention!r}; choose from {", ".join(ATTENTIONS)}'
    )
  if implementation in attention_kernels.KERNELS:
    if mesh is None:
      raise ValueError(f'{implementation} needs the mesh that it runs on')
    if bias_BxHxLxL is not None:
      raise ValueError(f'{implementation} adds no bias to the scores')
    return attention_kernels.attend(
      implementation,
      q_BxLxHxK,
      k_BxLxGxK,
      v_BxLxGxK,
      order_BxL,
      segment_BxL,
      attention=attention,
      mesh=mesh,
    )

  def see(queries: slice, keys: slice) -> jax.Array:
    return attention_mask(
      order_BxL[:, queries],
      order_BxL[:, keys],
      segment_BxL[:, queries],
      segment_BxL[:, keys],
    )

  return PORTABLE[implementation](
    q_BxLxHxK,
    k_BxLxGxK,
    v_BxLxGxK,
    see,
    bias_BxHxLxL,
    causal=attention == 'causal',
  )


def cross_attend(
  q_BxLxHxK: jax.Array,
  k_BxMxGxK: jax.Array,
  v_BxMxGxK: jax.Array,
  *,
  query_segment_BxL: jax.Array,
  key_segment_BxM: jax.Array,
  implementation: str,
) -> jax.Array:
  """Cross-attention: queries see the keys of the segment with their number.

  The kernels require queries and keys of equal length, so `xla` replaces them.
  """
  if implementation in attention_kernels.KERNELS:
    implementation = 'xla'

  def see(queries: slice, keys: slice) -> jax.Array:
    return cross_mask(query_segment_BxL[:, queries], key_segment_BxM[:, keys])

  return PORTABLE[implementation](
    q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, see, None, causal=False
  )


def cross_mask(
  query_segment_BxL: jax.Array, key_segment_BxM: jax.Array
) -> jax.Array:
  """Query i sees key j of its segment; padding sees everything.

  So no softmax row is empty, even where a row of keys has no padding.

  queries 1 2 0     mask  1 1 .
  keys    1 1 2           . . 1
                          1 1 1
  """
  query_BxLx1 = query_segment_BxL[:, :, None]
  return (query_BxLx1 == key_segment_BxM[:, None, :]) | (query_BxLx1 == 0)


def _whole(q, k, v, see, bias, *, causal):
  """The reference on the whole square of queries and keys."""
  del causal
  return reference(q, k, v, see(slice(None), slice(None)), bias)


def _blocks(q, k, v, see, bias, *, causal):
  """Blocks of queries in sequence, whose scores stay in a CPU's caches.

  Causal blocks skip all later keys, nearly half of the square.
  """
  outs = []
  for start, end in query_blocks(q.shape[1]):
    queries, keys = slice(start, end), slice(end if causal else k.shape[1])
    outs.append(
      reference(
        q[:, queries],
        k[:, keys],
        v[:, keys],
        see(queries, keys),
        None if bias is None else bias[:, :, queries, keys],
      )
    )
  return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)


def _xla(q, k, v, see, bias, *, causal):
  """JAX's implementation, compiled by XLA."""
  del causal
  mask_BxLxM = see(slice(None), slice(None))
  return jax.nn.dot_product_attention(
    q, k, v, bias=bias, mask=mask_BxLxM[:, None], implementation='xla'
  )


# Implementations that run on every platform. `see(queries, keys)` returns the
# mask of these slices.
PORTABLE = {'reference': _whole, 'blocks': _blocks, 'xla': _xla}
IMPLEMENTATIONS = (*PORTABLE, *attention_kernels.KERNELS)

# Platform -> implementations by preference; the first that can run is chosen.
PREFERENCES = {
  'cpu': ('blocks',),
  'gpu': ('cudnn', 'pallas_gpu', 'xla'),
  'tpu': ('splash', 'xla'),
}


def choose(wanted: str | None, case: attention_kernels.Case) -> str:
  """The wanted implementation; None chooses by the case's platform.

  Raises:
    UserError: the wanted one cannot run in this case.
  """
  if wanted is None:
    names = PREFERENCES.get(case.platform, ('xla',))
    return next(name for name in names if not _obstacle(name, case))
  obstacle = _obstacle(wanted, case)
  if obstacle:
    raise errors.UserError(
      f"model.attention='{wanted}' {obstacle}; change that, leave "
      'model.attention out to have one chosen, or use one that runs '
      f'everywhere: {", ".join(PORTABLE)}'
    )
  return wanted


def _obstacle(name: str, case: attention_kernels.Case) -> str:
  if name in PORTABLE:
    return ''
  return attention_kernels.KERNELS[name].obstacle(case)


def query_blocks(length: int) -> list[tuple[int, int]]:
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
  bias_BxHxTxM: jax.Array | None = None,
) -> jax.Array:
  """Attention of new positions to a cache whose key j has position j."""
  keys_M = jnp.arange(k_BxMxGxK.shape[1])
  mask_BxTxM = keys_M[None, None, :] <= position_BxT[:, :, None]
  return reference(q_BxTxHxK, k_BxMxGxK, v_BxMxGxK, mask_BxTxM, bias_BxHxTxM)


def rotate(
  x_BxLxHxK: jax.Array, position_BxL: jax.Array, base: float
) -> jax.Array:
  """Rotary position embedding (Su et al. 2021, equation 34).

  Pairs are (i, i + K/2), the layout of the Llama checkpoints, not neighbours
  as in the paper; the two differ by a permutation of K. Angles are float32.
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
