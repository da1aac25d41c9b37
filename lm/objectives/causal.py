"""Next-token prediction, left to right (Bengio et al. 2003, equation 1)."""

import functools

import numpy as np

from lm import losses, types
from lm.data import tokenizer
from lm.objectives import base


def make(config) -> base.Objective:
  """The objective for rows of `data.sequence_length` positions."""
  factors = losses.extras(config)
  return base.Objective(
    raw_length=config.data.sequence_length,
    size=lambda n, rng: n,
    corrupt=corrupt,
    loss=functools.partial(
      _loss, chunk=config.train.loss_chunk, factors=factors
    ),
    coefficients={'causal': 1.0, **factors},
    attention='causal',
    scorer='exact',
  )


def corrupt(record: base.Record, rng: np.random.Generator) -> types.Example:
  """Shifts a chunk right by one behind BOS; every token of it is a target.

  ids      [10 11 12 EOS]     a chunk that ends its document
  tokens   [BOS 10 11 12]
  targets  [10 11 12 EOS]
  weights  [1 1 1 1]
  order    [0 1 2 3]
  """
  del rng
  ids_L = record.ids_L
  return types.Example(
    tokens_L=np.concatenate([[tokenizer.BOS], ids_L[:-1]]).astype(np.int32),
    targets_L=ids_L.astype(np.int32),
    weights_L=np.ones(len(ids_L), np.float32),
    order_L=np.arange(len(ids_L), dtype=np.int32),
  )


def _loss(model, params, batch, key, train, *, chunk, factors) -> losses.Terms:
  hidden_BxLxD = model.hidden(params, batch, key=key, train=train)
  return losses.token_cross_entropy(
    functools.partial(model.logits, params),
    hidden_BxLxD,
    batch.targets_BxL,
    batch.weights_BxL,
    name='causal',
    chunk=chunk,
    factors=factors if train else None,
  )
