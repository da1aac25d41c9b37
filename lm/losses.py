"""Cross-entropy with its own gradient, plain and chunked along the length.

Losses return a sum and its weight; the one division is in `step.py`.
"""

import functools
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

  With `chunk` positions at a time only that slice of the logits exists. Its
  gradient is taken at once, in the forward pass, and kept instead of it, so
  that nothing is computed twice. Chunks walk along L and keep B whole, so that
  a sharded batch stays sharded.

  Args:
    logits: hidden [B, l, D] -> logits [B, l, V].
    hidden_BxLxD: hidden states.
    targets_BxL: int ids.
    weights_BxL: float32, 0 where nothing is predicted.
    chunk: positions read out at a time, a divisor of L; 0, L or more reads
      out all.
  """
  weight = jnp.sum(weights_BxL)
  length = targets_BxL.shape[1]
  if not chunk or chunk >= length:
    nll_BxL = cross_entropy(logits(hidden_BxLxD), targets_BxL)
    return jnp.sum(nll_BxL * weights_BxL), weight
  if length % chunk:
    raise ValueError(f'chunk {chunk} does not divide the length {length}')
  # What the readout closes over becomes an argument, to have a gradient.
  readout, closed = jax.closure_convert(logits, hidden_BxLxD[:, :chunk])
  total = _chunked(
    readout, chunk, closed, hidden_BxLxD, targets_BxL, weights_BxL
  )
  return total, weight


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(readout, chunk, closed, hidden_BxLxD, targets_BxL, weights_BxL):
  def body(total, xs):
    hidden_BxcxD, targets_Bxc, weights_Bxc = xs
    nll_Bxc = cross_entropy(readout(hidden_BxcxD, *closed), targets_Bxc)
    return total + jnp.sum(nll_Bxc * weights_Bxc), None

  xs = _split(chunk, (hidden_BxLxD, targets_BxL, weights_BxL))
  return jax.lax.scan(body, jnp.zeros((), jnp.float32), xs)[0]


def _chunked_forward(
  readout, chunk, closed, hidden_BxLxD, targets_BxL, weights_BxL
):
  def body(carry, xs):
    total, closed_gradient = carry
    hidden_BxcxD, targets_Bxc, weights_Bxc = xs

    def loss(hidden_BxcxD, closed):
      nll_Bxc = cross_entropy(readout(hidden_BxcxD, *closed), targets_Bxc)
      return jnp.sum(nll_Bxc * weights_Bxc), nll_Bxc

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (part, nll_Bxc), (d_hidden, d_closed) = gradient(hidden_BxcxD, closed)
    carry = total + part, jax.tree.map(jnp.add, closed_gradient, d_closed)
    return carry, (d_hidden, nll_Bxc)

  start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, closed)
  xs = _split(chunk, (hidden_BxLxD, targets_BxL, weights_BxL))
  (total, d_closed), parts = jax.lax.scan(body, start, xs)
  d_hidden_BxLxD, nll_BxL = jax.tree.map(_join, parts)
  return total, (d_closed, d_hidden_BxLxD, nll_BxL)


def _chunked_backward(readout, chunk, residuals, gradient):
  del readout, chunk
  d_closed, d_hidden_BxLxD, d_weights_BxL = jax.tree.map(
    lambda x: (x.astype(jnp.float32) * gradient).astype(x.dtype), residuals
  )
  return d_closed, d_hidden_BxLxD, None, d_weights_BxL


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _split(chunk, arrays):
  """[B, L, ...] to [L / chunk, B, chunk, ...]."""

  def split(x_BxL):
    parts = x_BxL.reshape(x_BxL.shape[0], -1, chunk, *x_BxL.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  return jax.tree.map(split, arrays)


def _join(parts):
  """[L / chunk, B, chunk, ...] to [B, L, ...]."""
  whole = jnp.moveaxis(parts, 0, 1)
  return whole.reshape(whole.shape[0], -1, *whole.shape[3:])
