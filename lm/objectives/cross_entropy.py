"""Cross-entropy with its own gradient, plain and chunked along the length.

Losses return a sum and its weight; the one division is in `step.py`.

Label smoothing and z-loss are terms of their own beside the cross-entropy, so
that its term is always the true one, in nats. They enter the trained loss by
their factors in `Objective.coefficients`, and evaluation has none of them:
validation loss is never smoothed.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lm import field, types


def _smoothing(log_z, target_logit, mean_logit):
  """What smoothed labels add to the cross-entropy, over their share.

  Of (1 - e) one-hot + e / V the cross-entropy is log Z - (1 - e) target_logit
  - e mean_logit (Szegedy et al. 2016, section 7).
  """
  del log_z
  return target_logit - mean_logit


def _z(log_z, target_logit, mean_logit):
  """log^2 Z, which keeps log Z near 0 (Chowdhery et al. 2022, section 5)."""
  del target_logit, mean_logit
  return log_z**2


# Term beside the cross-entropy -> its value from `logit_statistics`.
EXTRAS = {'smoothing': _smoothing, 'z': _z}

FIELDS = field.section(
  loss_chunk=field.Field(
    0,
    'Positions of each row whose logits exist at a time; 0: all.',
    least=0,
  ),
  label_smoothing=field.Field(
    0.0,
    'Share of the labels that is spread over the vocabulary in training '
    '(Szegedy et al. 2016); 0: none.',
    least=0,
    most=0.99,
  ),
  z_loss=field.Field(
    0.0,
    'Factor of log^2 Z in training (PaLM: 1e-4); 0: none.',
    least=0,
  ),
)


def extras(config) -> dict[str, float]:
  """The terms beside the cross-entropy that a config trains -> factor."""
  factors = {
    'smoothing': config.train.label_smoothing,
    'z': config.train.z_loss,
  }
  return {name: factor for name, factor in factors.items() if factor}


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
  log_z, target_logits = _log_z_and_target_logit(logits_xV, targets)
  return log_z - target_logits, (logits_xV, targets, log_z)


def _backward(residuals, gradient):
  softmax_xV, one_hot_xV = _softmax_and_one_hot(*residuals)
  gradient_xV = (softmax_xV - one_hot_xV) * gradient[..., None]
  return gradient_xV.astype(residuals[0].dtype), None


cross_entropy.defvjp(_forward, _backward)


def _log_z_and_target_logit(logits_xV, targets):
  log_z = jax.nn.logsumexp(logits_xV.astype(jnp.float32), axis=-1)
  target_logits = jnp.take_along_axis(logits_xV, targets[..., None], axis=-1)
  return log_z, target_logits[..., 0].astype(jnp.float32)


def _softmax_and_one_hot(logits_xV, targets, log_z):
  softmax_xV = jnp.exp(logits_xV.astype(jnp.float32) - log_z[..., None])
  ids_xV = jax.lax.broadcasted_iota(
    targets.dtype, logits_xV.shape, logits_xV.ndim - 1
  )
  return softmax_xV, (ids_xV == targets[..., None]).astype(jnp.float32)


@jax.custom_vjp
def logit_statistics(
  logits_xV: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """log Z, the target's logit and the mean logit, each float32 [...].

  Cross-entropy, label smoothing and z-loss are functions of these three. The
  gradient is written out in one pass, as that of `cross_entropy` is.

  Args:
    logits_xV: [..., V].
    targets: int [...].
  """
  return _statistics_forward(logits_xV, targets)[0]


def _statistics_forward(logits_xV, targets):
  log_z, target_logits = _log_z_and_target_logit(logits_xV, targets)
  mean_logits = jnp.mean(logits_xV.astype(jnp.float32), axis=-1)
  return (log_z, target_logits, mean_logits), (logits_xV, targets, log_z)


def _statistics_backward(residuals, gradients):
  softmax_xV, one_hot_xV = _softmax_and_one_hot(*residuals)
  of_log_z, of_target, of_mean = (x[..., None] for x in gradients)
  gradient_xV = (
    softmax_xV * of_log_z
    + one_hot_xV * of_target
    + of_mean / softmax_xV.shape[-1]
  )
  return gradient_xV.astype(residuals[0].dtype), None


logit_statistics.defvjp(_statistics_forward, _statistics_backward)


def token_cross_entropy(
  logits: Callable[[jax.Array], jax.Array],
  hidden_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  weights_BxL: jax.Array,
  *,
  name: str,
  normalizer: jax.Array | None = None,
  chunk: int = 0,
  factors: Mapping[str, float] | None = None,
) -> types.Terms:
  """Weighted sums over the tokens: the cross-entropy in nats, and the extras.

  With `chunk` positions at a time only that slice of the logits exists. Its
  gradient is taken at once, in the forward pass, and kept instead of it, so
  that nothing is computed twice. Chunks walk along L and keep B whole, so that
  a sharded batch stays sharded.

  The gradient kept is that of cross-entropy + sum of factor * extra: a loss
  must hold the terms in these proportions. In others, which the chunks cannot
  know, their gradient is NaN.

  Args:
    logits: hidden [B, l, D] -> logits [B, l, V].
    hidden_BxLxD: hidden states.
    targets_BxL: int ids.
    weights_BxL: float32, 0 where nothing is predicted.
    name: of the cross-entropy's term.
    normalizer: the weight of the terms; None: the sum of the weights.
    chunk: positions read out at a time; 0, L or more reads out all.
    factors: of `extras`, in training; None in evaluation.

  Returns:
    Terms `name` and those of `factors`, all of one weight.
  """
  weight = jnp.sum(weights_BxL) if normalizer is None else normalizer
  length = targets_BxL.shape[1]
  factors = tuple((factors or {}).items())
  if not chunk or chunk >= length:
    values = _values(logits(hidden_BxLxD), targets_BxL, factors)
    sums = [jnp.sum(value_BxL * weights_BxL) for value_BxL in values]
  else:
    arrays = _pad((hidden_BxLxD, targets_BxL, weights_BxL), -length % chunk)
    # What the readout closes over becomes an argument, to have a gradient.
    readout, closed = jax.closure_convert(logits, hidden_BxLxD[:, :chunk])
    sums = _chunked(readout, chunk, factors, closed, *arrays)
  names = [name, *(extra for extra, _ in factors)]
  return {n: (total, weight) for n, total in zip(names, sums, strict=True)}


def token_values(
  logits: Callable[[jax.Array], jax.Array],
  hidden_BxLxD: jax.Array,
  targets_BxL: jax.Array,
  *,
  chunk: int = 0,
  factors: Mapping[str, float] | None = None,
) -> list[jax.Array]:
  """The cross-entropy in nats of each token, and the extras, float32 [B, L].

  For losses that weight the tokens in several ways. Arguments are those of
  `token_cross_entropy`; with `chunk` the logits are computed again in the
  backward pass.
  """
  length = targets_BxL.shape[1]
  factors = tuple((factors or {}).items())
  if not chunk or chunk >= length:
    return _values(logits(hidden_BxLxD), targets_BxL, factors)
  arrays = _pad((hidden_BxLxD, targets_BxL), -length % chunk)

  @jax.checkpoint
  def values(xs):
    hidden_BxcxD, targets_Bxc = xs
    return _values(logits(hidden_BxcxD), targets_Bxc, factors)

  found = jax.lax.map(values, _split(chunk, arrays))
  return [_join(value)[:, :length] for value in found]


def _values(logits_xV, targets, factors):
  """The cross-entropy and the extras, each [...]."""
  if not factors:
    return [cross_entropy(logits_xV, targets)]
  statistics = logit_statistics(logits_xV, targets)
  log_z, target_logit, _ = statistics
  values = [EXTRAS[name](*statistics) for name, _ in factors]
  return [log_z - target_logit, *values]


def _mix(values, factors):
  """What is trained: the cross-entropy plus the extras times their factors."""
  mixed = values[0]
  for (_, factor), value in zip(factors, values[1:], strict=True):
    mixed = mixed + factor * value
  return mixed


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(
  readout, chunk, factors, closed, hidden_BxLxD, targets_BxL, weights_BxL
):
  def body(totals, xs):
    hidden_BxcxD, targets_Bxc, weights_Bxc = xs
    values = _values(readout(hidden_BxcxD, *closed), targets_Bxc, factors)
    parts = [jnp.sum(value_Bxc * weights_Bxc) for value_Bxc in values]
    return jax.tree.map(jnp.add, totals, parts), None

  start = [jnp.zeros((), jnp.float32)] * (1 + len(factors))
  xs = _split(chunk, (hidden_BxLxD, targets_BxL, weights_BxL))
  return jax.lax.scan(body, start, xs)[0]


def _chunked_forward(
  readout, chunk, factors, closed, hidden_BxLxD, targets_BxL, weights_BxL
):
  def body(carry, xs):
    hidden_BxcxD, targets_Bxc, weights_Bxc = xs

    def loss(hidden_BxcxD, closed):
      values = _values(readout(hidden_BxcxD, *closed), targets_Bxc, factors)
      parts = [jnp.sum(value_Bxc * weights_Bxc) for value_Bxc in values]
      return _mix(parts, factors), (parts, _mix(values, factors))

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (d_hidden, d_closed), (parts, mixed_Bxc) = gradient(hidden_BxcxD, closed)
    return jax.tree.map(jnp.add, carry, (parts, d_closed)), (
      d_hidden,
      mixed_Bxc,
    )

  zero = [jnp.zeros((), jnp.float32)] * (1 + len(factors))
  start = zero, jax.tree.map(jnp.zeros_like, closed)
  xs = _split(chunk, (hidden_BxLxD, targets_BxL, weights_BxL))
  (totals, d_closed), parts = jax.lax.scan(body, start, xs)
  d_hidden_BxLxD, mixed_BxL = jax.tree.map(_join, parts)
  return totals, (d_closed, d_hidden_BxLxD, mixed_BxL)


def _chunked_backward(readout, chunk, factors, residuals, gradients):
  del readout, chunk
  scale, *of_extras = gradients
  for (_, factor), given in zip(factors, of_extras, strict=True):
    wanted = factor * gradients[0]
    near = jnp.abs(given - wanted) <= 1e-4 * jnp.abs(wanted)
    scale = jnp.where(near, scale, jnp.nan)
  d_closed, d_hidden_BxLxD, d_weights_BxL = jax.tree.map(
    lambda x: (x.astype(jnp.float32) * scale).astype(x.dtype), residuals
  )
  return d_closed, d_hidden_BxLxD, None, d_weights_BxL


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _pad(arrays, count):
  """`count` positions more, of weight 0."""
  if not count:
    return arrays
  return jax.tree.map(
    lambda x: jnp.pad(x, [(0, 0), (0, count)] + [(0, 0)] * (x.ndim - 2)), arrays
  )


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
