"""The readout of hidden states: which positions, and how many at a time.

Losses, scorers, validation and unmasking share `read_out` and `map_chunks`, and
the log-probabilities built on them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm import types

# Maximum number of logits in memory at a time: 256 MiB of float32.
_LOGITS = 1 << 26


def read_out(
  hidden_BxLxD: jax.Array, batch: types.Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Predictions' hidden states [B, P, D], targets [B, P] and weights [B, P].

  P is L where `predict_BxP` of the batch is None.
  """
  if batch.predict_BxP is None:
    return hidden_BxLxD, batch.targets_BxL, batch.weights_BxL
  predict_BxP = batch.predict_BxP
  hidden_BxPxD = jnp.take_along_axis(
    hidden_BxLxD, predict_BxP[:, :, None], axis=1
  )
  return (
    hidden_BxPxD,
    at_predictions(batch.targets_BxL, batch),
    at_predictions(batch.weights_BxL, batch) * _is_prediction(predict_BxP),
  )


def at_predictions(values_BxL: jax.Array, batch: types.Batch) -> jax.Array:
  """Values of the positions that are read out, [B, P]."""
  if batch.predict_BxP is None:
    return values_BxL
  return jnp.take_along_axis(values_BxL, batch.predict_BxP, axis=1)


def predicted(batch: types.Batch) -> jax.Array:
  """Whether each position that is read out is predicted, bool [B, P]."""
  weights_BxP = at_predictions(batch.weights_BxL, batch)
  if batch.predict_BxP is not None:
    weights_BxP = weights_BxP * _is_prediction(batch.predict_BxP)
  return weights_BxP > 0


def _is_prediction(predict_BxP: jax.Array) -> jax.Array:
  """1 for positions, 0 for the zeros that follow them."""
  # Positions are ascending: only the first of a row can be 0 itself.
  first_P = jnp.arange(predict_BxP.shape[1]) == 0
  return ((predict_BxP > 0) | first_P[None, :]).astype(jnp.float32)


def map_chunks(
  function: Callable[[Any], Any], arrays: Sequence[jax.Array], chunk: int
) -> Any:
  """Applies a function to arrays [B, P, ...] in chunks along P.

  B is not split, so that a sharded batch stays sharded.

  Args:
    chunk: maximum number of positions that `function` sees at a time.

  Returns:
    The function's results, [B, P, ...].
  """
  length = arrays[0].shape[1]
  if chunk >= length:
    return function(arrays)
  found = jax.lax.map(function, split(arrays, chunk))
  return jax.tree.map(lambda x_BxP: x_BxP[:, :length], join(found))


def split(arrays: Any, chunk: int) -> Any:
  """Splits [B, P, ...] into [ceil(P / chunk), B, chunk, ...], zero-padded."""

  def split_one(x_BxP):
    length = x_BxP.shape[1]
    padding = [(0, 0), (0, -length % chunk)] + [(0, 0)] * (x_BxP.ndim - 2)
    if length % chunk:
      x_BxP = jnp.pad(x_BxP, padding)
    parts = x_BxP.reshape(x_BxP.shape[0], -1, chunk, *x_BxP.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  return jax.tree.map(split_one, arrays)


def join(parts: Any) -> Any:
  """Joins chunks [n, B, chunk, ...] to [B, n x chunk, ...]."""

  def join_one(part):
    whole = jnp.moveaxis(part, 0, 1)
    return whole.reshape(whole.shape[0], -1, *whole.shape[3:])

  return jax.tree.map(join_one, parts)


def positions_at_a_time(rows: int, V: int) -> int:
  """Number of positions of each row whose logits may exist at a time."""
  return max(1, _LOGITS // (rows * V))


def token_log_probs(
  hidden: Callable[..., jax.Array],
  logits: Callable[[types.Params, jax.Array], jax.Array],
  params: types.Params,
  batch: types.Batch,
  allowed_V: jax.Array | None = None,
  *,
  chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The targets' log-probabilities at the positions that are read out.

  Args:
    hidden, logits: those of a `types.Model`.
    allowed_V: bool, ids that have a probability; None: all.
    chunk: positions of each row whose logits exist at a time; None: the result
      of `positions_at_a_time`.

  Returns:
    float32 [B, P]: natural logarithms of the probabilities among the allowed
    ids, and the special mass, the total probability of the other ids before
    they were excluded. Where nothing is predicted, the values are those of the
    text's own token or of PAD.
  """
  hidden_BxPxD, targets_BxP, _ = read_out(hidden(params, batch), batch)

  def read_chunk(arrays):
    hidden_BxcxD, targets_Bxc = arrays
    logits_BxcxV = logits(params, hidden_BxcxD).astype(jnp.float32)
    return masked_log_probs(logits_BxcxV, targets_Bxc, allowed_V)

  if chunk is None:
    V = jax.eval_shape(logits, params, hidden_BxPxD).shape[-1]
    chunk = positions_at_a_time(len(targets_BxP), V)
  return map_chunks(read_chunk, (hidden_BxPxD, targets_BxP), chunk)


def masked_log_probs(
  logits_xV: jax.Array, targets: jax.Array, allowed_V: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities among allowed ids, and the mass of the others.

  Returns:
    float32 [...]: natural logarithms, and probabilities.
  """
  log_all = jax.nn.logsumexp(logits_xV, axis=-1)
  if allowed_V is None:
    target = jnp.take_along_axis(logits_xV, targets[..., None], axis=-1)[..., 0]
    return target - log_all, jnp.zeros_like(log_all)
  kept_xV = jnp.where(allowed_V, logits_xV, -jnp.inf)
  log_kept = jax.nn.logsumexp(kept_xV, axis=-1)
  target = jnp.take_along_axis(kept_xV, targets[..., None], axis=-1)[..., 0]
  return target - log_kept, -jnp.expm1(log_kept - log_all)
