"""Cross-entropy with its own gradient, plain and chunked along the length.

Losses return a sum and its weight; the one division is in `step.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Name of a loss term -> (sum, weight), two float32 scalars.
Terms = dict[str, tuple[jax.Array, jax.Array]]


@jax.custom_vjp
def cross_entropy(logits_xV: jax.Array, targets: jax.Array) -> jax.Array:
  """Negative log-likelihood in nats of `targets` under softmax of the logits.

  Computed in float32 whatever the dtype of the logits. The gradient is written
  out, softmax minus one-hot: differentiating the gather would give a scatter,
  which is slow on CPU.

  Args:
    logits_xV: [..., V].
    targets: int [...].

  Returns:
    float32 [...].
  """
  return _forward(logits_xV, targets)[0]


def _forward(logits_xV, targets):
  log_z = jax.nn.logsumexp(logits_xV.astype(jnp.float32), axis=-1)
  target_logits = jnp.take_along_axis(logits_xV, targets[..., None], axis=-1)
  nll = log_z - target_logits[..., 0].astype(jnp.float32)
  return nll, (logits_xV, targets, log_z)


def _backward(residuals, gradient):
  logits_xV, targets, log_z = residuals
  softmax_xV = jnp.exp(logits_xV.astype(jnp.float32) - log_z[..., None])
  ids_xV = jax.lax.broadcasted_iota(
    targets.dtype, logits_xV.shape, logits_xV.ndim - 1
  )
  one_hot_xV = (ids_xV == targets[..., None]).astype(jnp.float32)
  gradient_xV = (softmax_xV - one_hot_xV) * gradient[..., None]
  return gradient_xV.astype(logits_xV.dtype), None


cross_entropy.defvjp(_forward, _backward)


def token_cross_entropy(
  logits: Callable[[jax.Array], jax.Array],
  hidden_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  weights_BxL: jax.Array,
  *,
  chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
  """Weighted sum of the tokens' cross-entropies in nats, and the weight.

  With `chunk` positions at a time, only that slice of the logits exists, in
  the forward and in the backward pass, where it is computed once more. Chunks
  walk along L and keep B whole, so that a sharded batch stays sharded.

  Args:
    logits: hidden [B, l, D] -> logits [B, l, V].
    hidden_BxLxD: hidden states.
    targets_BxL: int ids.
    weights_BxL: float32, 0 where nothing is predicted.
    chunk: positions read out at a time, a divisor of L; 0 reads out all.
  """

  def weighted_sum(hidden_BxlxD, targets_Bxl, weights_Bxl):
    return jnp.sum(
      cross_entropy(logits(hidden_BxlxD), targets_Bxl) * weights_Bxl
    )

  weight = jnp.sum(weights_BxL)
  length = targets_BxL.shape[1]
  if not chunk or chunk >= length:
    return weighted_sum(hidden_BxLxD, targets_BxL, weights_BxL), weight
  if length % chunk:
    raise ValueError(f'chunk {chunk} does not divide the length {length}')

  def split(x_BxL):
    chunked = x_BxL.reshape(x_BxL.shape[0], -1, chunk, *x_BxL.shape[2:])
    return jnp.moveaxis(chunked, 1, 0)

  # Without the checkpoint the scan would keep every chunk's logits.
  body = jax.checkpoint(weighted_sum)
  total, _ = jax.lax.scan(
    lambda total, xs: (total + body(*xs), None),
    jnp.zeros((), jnp.float32),
    (split(hidden_BxLxD), split(targets_BxL), split(weights_BxL)),
  )
  return total, weight
