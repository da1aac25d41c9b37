"""Cross-entropy with its gradient written out, plain and chunked along L.

Losses return a sum and its weight; the one division is in `step.py`.

Label smoothing and z-loss are extras: they are added to what is trained, and
reported beside a cross-entropy that is always the true one, in nats. Evaluation
has none of them: validation loss is never smoothed.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lm import field, types
from lm.models import readout


def _smoothing(log_z, target_logit, mean_logit):
  """What smoothed labels add to the cross-entropy, divided by their share e.

  With the labels (1 - e) one-hot + e / V the cross-entropy is log Z - (1 - e)
  target_logit - e mean_logit (Szegedy et al. 2016, section 7).
  """
  del log_z
  return target_logit - mean_logit


def _z(log_z, target_logit, mean_logit):
  """log^2 Z, which keeps log Z near 0 (Chowdhery et al. 2022, section 5)."""
  del target_logit, mean_logit
  return log_z**2


# Name of an extra -> its value, from `logit_statistics`.
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
  """The extras that a config trains -> their factors."""
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
  d_log_z, d_target, d_mean = (x[..., None] for x in gradients)
  gradient_xV = (
    softmax_xV * d_log_z + one_hot_xV * d_target + d_mean / softmax_xV.shape[-1]
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
  """Weighted sums over the tokens: what is trained, and its parts.

  With `chunk` only the logits of that many positions exist at a time. Their
  gradient is computed at once, in the forward pass, and kept in their place, so
  that nothing is computed twice: this is possible since one term alone has a
  gradient, and a later pass can only scale it. Chunks walk along L and keep B
  whole, so that a sharded batch stays sharded.

  Args:
    logits: hidden [B, l, D] -> logits [B, l, V].
    hidden_BxLxD: hidden states.
    targets_BxL: int ids.
    weights_BxL: float32, 0 where nothing is predicted.
    name: the name of the cross-entropy's term.
    normalizer: the weight of the terms; None: the sum of the weights.
    chunk: positions read out at a time; 0, L or more reads out all.
    factors: of `extras`, in training; None in evaluation.

  Returns:
    Without factors the term `name`, in nats. With factors the term TRAINED, the
    cross-entropy + sum of factor * extra, and without gradient the terms that
    are only reported: `name` and the extras. All have one weight.
  """
  weight = jnp.sum(weights_BxL) if normalizer is None else normalizer
  factors = tuple((factors or {}).items())
  arrays = hidden_BxLxD, targets_BxL, weights_BxL
  if not chunk or chunk >= targets_BxL.shape[1]:
    values = _values(logits(hidden_BxLxD), targets_BxL, factors)
    parts = _sums(values, weights_BxL)
    trained = _mix(parts, factors)
  else:
    # What the readout closes over becomes an argument, to have a gradient.
    closed_logits, closed = jax.closure_convert(logits, hidden_BxLxD[:, :chunk])
    trained, parts = _chunked(
      closed_logits, factors, closed, *readout.split(arrays, chunk)
    )
  if not factors:
    return {name: (trained, weight)}
  names = [name, *(extra for extra, _ in factors)]
  reported = zip(names, jax.lax.stop_gradient(parts), strict=True)
  return {
    types.TRAINED: (trained, weight),
    **{n: (total, weight) for n, total in reported},
  }


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
  factors = tuple((factors or {}).items())
  arrays = hidden_BxLxD, targets_BxL

  def values(arrays):
    hidden_BxcxD, targets_Bxc = arrays
    return _values(logits(hidden_BxcxD), targets_Bxc, factors)

  if not chunk or chunk >= targets_BxL.shape[1]:
    return values(arrays)
  return readout.map_chunks(jax.checkpoint(values), arrays, chunk)


def _values(logits_xV, targets, factors):
  """The cross-entropy and the extras, each [...]."""
  if not factors:
    return [cross_entropy(logits_xV, targets)]
  statistics = logit_statistics(logits_xV, targets)
  log_z, target_logit, _ = statistics
  values = [EXTRAS[name](*statistics) for name, _ in factors]
  return [log_z - target_logit, *values]


def _sums(values, weights):
  return [jnp.sum(value * weights) for value in values]


def _mix(values, factors):
  """What is trained: the cross-entropy plus the extras times their factors."""
  mixed = values[0]
  for (_, factor), value in zip(factors, values[1:], strict=True):
    mixed = mixed + factor * value
  return mixed


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(logits, factors, closed, *arrays):
  """(trained sum, sums of `_values`); only the first has a gradient.

  Args:
    logits: (hidden [B, c, D], *closed) -> logits [B, c, V].
    arrays: hidden states, targets and weights of the chunks, [n, B, c, ...].
  """

  def body(totals, chunk):
    hidden_BxcxD, targets_Bxc, weights_Bxc = chunk
    values = _values(logits(hidden_BxcxD, *closed), targets_Bxc, factors)
    parts = _sums(values, weights_Bxc)
    return jax.tree.map(jnp.add, totals, parts), None

  zero = [jnp.zeros((), jnp.float32)] * (1 + len(factors))
  totals, _ = jax.lax.scan(body, zero, arrays)
  return _mix(totals, factors), totals


def _chunked_forward(logits, factors, closed, *arrays):
  def body(carry, chunk):
    hidden_BxcxD, targets_Bxc, weights_Bxc = chunk

    def loss(hidden_BxcxD, closed):
      values = _values(logits(hidden_BxcxD, *closed), targets_Bxc, factors)
      parts = _sums(values, weights_Bxc)
      return _mix(parts, factors), (parts, _mix(values, factors))

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (d_hidden_BxcxD, d_closed), (parts, d_weights_Bxc) = gradient(
      hidden_BxcxD, closed
    )
    carry = jax.tree.map(jnp.add, carry, (parts, d_closed))
    return carry, (d_hidden_BxcxD, d_weights_Bxc)

  zero = [jnp.zeros((), jnp.float32)] * (1 + len(factors))
  start = zero, jax.tree.map(jnp.zeros_like, closed)
  (totals, d_closed), (d_hidden, d_weights) = jax.lax.scan(body, start, arrays)
  return (_mix(totals, factors), totals), (d_closed, d_hidden, d_weights)


def _chunked_backward(logits, factors, residuals, gradients):
  del logits, factors
  scale, _ = gradients
  d_closed, d_hidden, d_weights = jax.tree.map(
    lambda x: (x.astype(jnp.float32) * scale).astype(x.dtype), residuals
  )
  return d_closed, d_hidden, None, d_weights


_chunked.defvjp(_chunked_forward, _chunked_backward)
