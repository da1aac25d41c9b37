"""The loss of every objective that predicts tokens at positions of its own."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from lm import types
from lm.models import readout
from lm.objectives import cross_entropy


def fill_in(objective: types.Objective, config, name: str) -> types.Objective:
  """Gives an objective without a loss the mean cross-entropy of its targets."""
  return dataclasses.replace(
    objective, loss=make(config, name), coefficients=coefficients(config, name)
  )


def make(
  config,
  name: str,
  normalizer: Callable[[types.Batch], jax.Array] | None = None,
) -> types.Loss:
  """The `loss` of an Objective: cross-entropy of the targets, in nats.

  Args:
    name: the name of its term.
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


def coefficients(config, name: str) -> dict[str, float]:
  """The `coefficients` of an Objective with the loss of `make`."""
  return {types.TRAINED if cross_entropy.extras(config) else name: 1.0}


def _loss(
  model: types.Model,
  params,
  batch,
  key,
  train,
  *,
  name,
  normalizer,
  chunk,
  factors,
) -> types.Terms:
  hidden_BxLxD = model.hidden(params, batch, key=key, train=train)
  terms = cross_entropy.token_cross_entropy(
    functools.partial(model.logits, params),
    *readout.read_out(hidden_BxLxD, batch),
    name=name,
    normalizer=None if normalizer is None else normalizer(batch),
    chunk=chunk,
    factors=factors if train else None,
  )
  if factors and not train:
    # Evaluation adds nothing: what is trained is the cross-entropy there.
    return {types.TRAINED: terms[name], **terms}
  return terms
