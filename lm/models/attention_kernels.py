"""Fused attention kernels: their requirements, and their calls on a mesh.

XLA cannot split a Pallas kernel, so each runs under `shard_map` on the rows and
heads that a device holds, and so does cuDNN's, for uniformity. On CPU the
Pallas kernels run interpreted, which is slow and only used by tests: the config
refuses them on that platform.

Axes besides the project's legend: `G` key-value heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as triton
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

from lm.runtime import sharding

# Positions in a block: the number of lanes of a TPU's vector unit.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Case:
  """What the choice of a kernel depends on, known before compiling.

  platform: `cpu`, `gpu` or `tpu`.
  compute_capability: that of an NVIDIA GPU, 0 for other devices.
  attention: a pattern of `attention.ATTENTIONS`.
  L: length of the side that attends to itself.
  K: head size.
  dtype: name of the dtype of queries, keys and values.
  one_segment: whether training rows hold one segment, with padding after it,
    as rows of scoring and generation do.
  bias: whether a bias is added to the scores.
  """

  platform: str
  compute_capability: float
  attention: str
  L: int
  K: int
  dtype: str
  one_segment: bool
  bias: bool


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel and its requirements.

  run(q, k, v, segment, *, causal, interpret) -> [B, L, H, K], unsharded.
  obstacle(case): the reason why the kernel cannot run, as the predicate of a
    sentence about it; empty if it can.
  """

  run: Callable[..., jax.Array]
  obstacle: Callable[[Case], str]


def attend(
  name: str,
  q_BxLxHxK: jax.Array,
  k_BxLxGxK: jax.Array,
  v_BxLxGxK: jax.Array,
  order_BxL: jax.Array,
  segment_BxL: jax.Array,
  *,
  attention: str,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Runs a kernel of `KERNELS` on each device's rows and heads."""
  kernel = KERNELS[name]
  row_axes = sharding.BATCH[0]
  parts = math.prod(mesh.shape[axis] for axis in row_axes)
  # A batch that cannot be split, such as one prompt, is read by every device.
  rows = row_axes if len(q_BxLxHxK) % parts == 0 else None
  heads = P(rows, None, 'tensor', None)
  run = functools.partial(
    _CALLS[attention],
    functools.partial(
      kernel.run, interpret=mesh.devices.flat[0].platform == 'cpu'
    ),
  )
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(heads, heads, heads, P(rows, None), P(rows, None)),
    out_specs=heads,
    # Kernels do not declare the mesh axes along which their outputs vary.
    check_vma=False,
  )(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, order_BxL, segment_BxL)


def _causal(run, q, k, v, order, segment):
  del order
  return run(q, k, v, segment, causal=True)


def _bidirectional(run, q, k, v, order, segment):
  del order
  return run(q, k, v, segment, causal=False)


def _prefix(run, q, k, v, order, segment):
  """Two calls of the kernel, a full one for the prefix and a causal one.

  In the full call, positions after a prefix have the negated number of their
  segment, so that the prefix does not see them.
  """
  prefix = order == 0
  apart = jnp.where(prefix, segment, -segment)
  return jnp.where(
    prefix[:, :, None, None],
    run(q, k, v, apart, causal=False),
    run(q, k, v, segment, causal=True),
  )


_CALLS = {
  'causal': _causal,
  'bidirectional': _bidirectional,
  'prefix': _prefix,
}


def _cudnn(q, k, v, segment, *, causal, interpret):
  """cuDNN's causal flash attention, for rows of one segment.

  Padding follows the segment, so causal attention hides it from all other
  positions. A mask of segments would become a bias [B, H, L, L].
  """
  del segment, interpret
  if not causal:
    raise ValueError('cudnn is causal only: others would attend to padding')
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=True, implementation='cudnn'
  )


def _cudnn_obstacle(case: Case) -> str:
  size, largest = case.K, 256 if case.compute_capability >= 9 else 128
  return _first(
    *_on_gpu(case),
    _without_bias(case),
    (case.attention != 'causal', 'is for causal objectives only'),
    (
      not case.one_segment,
      'needs rows of one segment, data.cross_document_attention=True',
    ),
    (
      case.dtype != 'bfloat16',
      f"needs model.dtype='bfloat16', not '{case.dtype}'",
    ),
    (
      size % 8 != 0 or size > largest,
      'needs heads (model.head_size) of a size divisible by 8 '
      f'and at most {largest}, not {size}',
    ),
  )


def _pallas_gpu(q, k, v, segment, *, causal, interpret):
  """Flash attention in Pallas (Triton), with segments."""
  H, K = q.shape[2:]
  # The kernel has no grouped queries. Head h reads key-value head h // repeats.
  repeats = H // k.shape[2]
  # These blocks fit the shared memory of an A100, an H100 and an RTX 4090; the
  # kernel's default of 128 exceeds all three with wide heads.
  wide = _head_bytes(K, q.dtype) > 256
  block = 32 if wide else _BLOCK
  return triton.mha(
    q,
    jnp.repeat(k, repeats, axis=2),
    jnp.repeat(v, repeats, axis=2),
    segment,
    sm_scale=K**-0.5,
    causal=causal,
    block_sizes=triton.BlockSizes(
      block_q=block,
      block_k=block,
      block_q_dkv=32,
      block_kv_dkv=32,
      block_q_dq=32,
      block_kv_dq=32,
    ),
    interpret=interpret,
  )


def _head_bytes(K: int, dtype) -> int:
  """Bytes of one position's query; heads are padded to a power of two."""
  return (1 << (K - 1).bit_length()) * jnp.dtype(dtype).itemsize


def _pallas_gpu_obstacle(case: Case) -> str:
  return _first(
    *_on_gpu(case),
    _without_bias(case),
    _in_whole_blocks(case),
    (
      _head_bytes(case.K, case.dtype) > 512,
      'needs heads (model.head_size) of at most 128 in float32 '
      f'and 256 in bfloat16, not {case.K} in {case.dtype}',
    ),
  )


def _splash(q, k, v, segment, *, causal, interpret):
  """Splash attention in Pallas (Mosaic), which skips fully masked blocks.

  Blocks have up to 512 positions, as in MaxText.
  """
  _, L, H, K = q.shape
  mask = splash.CausalMask((L, L)) if causal else splash.FullMask((L, L))
  block = next(n for n in (4 * _BLOCK, 2 * _BLOCK, _BLOCK) if L % n == 0)
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * H),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    interpret=interpret,
  )
  # The kernel reads one row, heads before positions, and does not scale scores.
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * K**-0.5, k, v))
  out_BxHxLxK = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment, segment))
  return jnp.swapaxes(out_BxHxLxK, 1, 2)


def _splash_obstacle(case: Case) -> str:
  return _first(
    (case.platform != 'tpu', f'runs on TPU, not on {case.platform}'),
    _without_bias(case),
    _in_whole_blocks(case),
  )


# A check is (whether it fails, the message in that case).
_Check = tuple[bool, str]


def _first(*checks: _Check) -> str:
  return next((text for fails, text in checks if fails), '')


def _on_gpu(case: Case) -> tuple[_Check, _Check]:
  return (
    (case.platform != 'gpu', f'runs on GPU, not on {case.platform}'),
    (
      case.compute_capability < 8,
      'needs an NVIDIA GPU of compute capability 8.0 or newer, not '
      f'{case.compute_capability}',
    ),
  )


def _in_whole_blocks(case: Case) -> _Check:
  return (
    case.L % _BLOCK != 0,
    'needs data.sequence_length (in an encoder-decoder, each side of it) to be '
    f'a multiple of {_BLOCK}, not {case.L}',
  )


def _without_bias(case: Case) -> _Check:
  return case.bias, "adds no bias to the scores, as model.position='relative'"


KERNELS = {
  'cudnn': Kernel(_cudnn, _cudnn_obstacle),
  'pallas_gpu': Kernel(_pallas_gpu, _pallas_gpu_obstacle),
  'splash': Kernel(_splash, _splash_obstacle),
}
