"""The loss of every objective that predicts tokens at positions of its own."""

import functools

import jax
import jax.numpy as jnp

from lm import types
from lm.models import base
from lm.objectives import cross_entropy


def read_out(
  hidden_BxLxD: jax.Array, batch: types.Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What is predicted: hidden [B, P, D], targets [B, P] and weights [B, P].

  Where the batch names positions, those alone; else P is L.
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
    at_predictions(batch.weights_BxL, batch) * is_prediction(predict_BxP),
  )


def at_predictions(values_BxL: jax.Array, batch: types.Batch) -> jax.Array:
  """Values of the positions that are read out, [B, P]."""
  if batch.predict_BxP is None:
    return values_BxL
  return jnp.take_along_axis(values_BxL, batch.predict_BxP, axis=1)


def is_prediction(predict_BxP: jax.Array) -> jax.Array:
  """1 for positions, 0 for the zeros behind them."""
  # Positions rise: only the first of a row can be 0 itself.
  first_P = jnp.arange(predict_BxP.shape[1]) == 0
  return ((predict_BxP > 0) | first_P[None, :]).astype(jnp.float32)


def make(config, name: str, normalizer=None):
  """The `loss` of an Objective: cross-entropy of the targets, in nats.

  Args:
    name: of its term.
    normalizer: batch -> weight of the term; None: the sum of the weights.
  """
  factors = cross_entropy.extras(config)
  return functools.partial(
    _loss,
    name=name,
    normalizer=normalizer,
    chunk=config.train.loss_chunk,
    factors=factors,
  )


def pools(loss) -> bool:
  """Whether a `loss` is the mean over its tokens, as `make` gives by default.

  Then tokens of several objectives can be in one mean.
  """
  own = isinstance(loss, functools.partial) and loss.func is _loss
  return own and loss.keywords['normalizer'] is None


def coefficients(config, name: str) -> dict[str, float]:
  """The `coefficients` of an Objective with the loss of `make`."""
  return {name: 1.0, **cross_entropy.extras(config)}


def _loss(
  model: base.Model,
  params,
  batch,
  key,
  train,
  *,
  name,
  normalizer,
  chunk,
  factors,
) -> cross_entropy.Terms:
  hidden_BxLxD = model.hidden(params, batch, key=key, train=train)
  return cross_entropy.token_cross_entropy(
    functools.partial(model.logits, params),
    *read_out(hidden_BxLxD, batch),
    name=name,
    normalizer=None if normalizer is None else normalizer(batch),
    chunk=chunk,
    factors=factors if train else None,
  )
