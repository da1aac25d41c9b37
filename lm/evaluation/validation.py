"""Validation: the loss of the objective on held-out rows, and its breakdown."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import field, types
from lm.data import packing, store, tokenizer
from lm.models import readout
from lm.runtime import sharding
from lm.training import metrics, step

# Numbers of bins of the position in a segment, and of its masked share.
POSITIONS, RATIOS = 8, 10

FIELDS = field.section(
  batches=field.Field(
    8, 'Batches of validation rows while training; 0: all.', least=0
  ),
)


class Validation:
  """Evaluates validation rows, with the same corruption at each call.

  Fresh corruption would add more noise than the differences to be measured.

  left_out: message about the pairs that do not fit a row.
  """

  def __init__(
    self,
    split: store.Split,
    objective: types.Objective,
    model: types.Model,
    mesh: jax.sharding.Mesh,
    config,
  ):
    self._objective, self._mesh = objective, mesh
    self._batch_size = config.evaluate.batch_size
    self._rows = packing.Rows(
      split,
      objective,
      # Runs of different seeds are evaluated on the same rows.
      seed=0,
      cross_document_attention=config.data.cross_document_attention,
    )
    self.left_out = self._rows.left_out('validation')
    limit = config.evaluate.batches * self._batch_size or 2**62
    self._count = self._rows.rows_in_first_epoch(limit)
    self._empty = packing.pack([], objective.capacity, objective.arrays)
    self._step = jax.jit(
      _make_step(objective, model, config.train.loss_chunk),
      out_shardings=sharding.replicated(mesh),
    )

  def __call__(self, params: types.Params) -> dict[str, Any]:
    """Returns the figures of a validation line.

    loss, loss/NAME: nats.
    bits_by_position: mean bits per predicted token, by position in the segment.
    loss_by_masking_ratio: mean nats per predicted token, by the share of the
      text of its segment that is predicted; only if tokens are masked.
    perplexity: only if the loss is the negative log-likelihood of a text.

    The two lists hold a mean for each of several equal bins, of the length of a
    row or of the share; None if the bin has no predicted token.
    """
    terms: dict[str, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    local = sharding.local_rows(self._mesh, self._batch_size)
    for first in range(0, self._count, self._batch_size):
      numbers = [first + int(row) for row in local]
      rows = [
        self._rows[n] if n < self._count else self._empty for n in numbers
      ]
      batch = sharding.put_batch(
        self._mesh, packing.stack(rows), self._batch_size
      )
      found = jax.device_get(self._step(params, batch))
      for sums, new in zip((terms, parts), found, strict=True):
        for name, pair in new.items():
          sums[name] = sums.get(name, 0.0) + np.asarray(pair, np.float64)
    values: dict[str, Any] = metrics.term_losses(
      {name: pair.tolist() for name, pair in terms.items()},
      self._objective.coefficients,
    )
    # Only the exponential of a text's negative log-likelihood is a perplexity;
    # a loss on masked tokens is not one.
    trained = terms.keys() & self._objective.coefficients.keys()
    if self._objective.scorer == 'exact' and len(trained) == 1 and values:
      values['perplexity'] = math.exp(min(values['loss'], 700.0))
    return values | _means(parts)


def _means(parts: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
  return {
    name: [
      float(total / weight) if weight else None
      for total, weight in zip(*pair, strict=True)
    ]
    for name, pair in parts.items()
  }


def _make_step(objective: types.Objective, model: types.Model, chunk: int):
  """Returns (params, batch) -> (terms, {name: sums and weights [2, bins]})."""
  evaluate = step.make_evaluate_step(objective, model)

  def run(params, batch: types.Batch):
    # XLA shares the common computation with the loss of the objective; only a
    # readout in chunks is computed twice.
    log_p_BxP, _ = model.token_log_probs(
      params, batch, chunk=chunk or batch.tokens_BxL.shape[1]
    )
    nll_BxP = -log_p_BxP
    predicted_BxP = readout.predicted(batch).astype(jnp.float32)
    length = batch.tokens_BxL.shape[1]
    parts = {
      'bits_by_position': _sums(
        nll_BxP / jnp.log(2.0),
        predicted_BxP,
        batch.position_BxL * POSITIONS // length,
        POSITIONS,
        batch,
      )
    }
    if objective.attention == 'bidirectional':
      parts['loss_by_masking_ratio'] = _sums(
        nll_BxP, predicted_BxP, masking_ratio_tenths(batch), RATIOS, batch
      )
    return evaluate(params, batch), parts

  return run


def masking_ratio_tenths(batch: types.Batch) -> jax.Array:
  """Tenths of the text of its segment that are predicted; int [B, L], 0 to 9.

  3 of 10 tokens -> 3; all of them -> 9
  """
  text_BxL = (batch.targets_BxL >= tokenizer.NUM_SPECIAL) & (
    batch.segment_BxL > 0
  )
  masked_BxL = text_BxL & (batch.weights_BxL > 0)
  num_segments = batch.targets_BxL.shape[1] + 1

  def count_in_segment(counted_L, segment_L):
    counts = jax.ops.segment_sum(
      counted_L.astype(jnp.int32), segment_L, num_segments
    )
    return counts[segment_L]

  masked_BxL, text_BxL = (
    jax.vmap(count_in_segment)(x, batch.segment_BxL)
    for x in (masked_BxL, text_BxL)
  )
  tenths_BxL = masked_BxL * RATIOS // jnp.maximum(text_BxL, 1)
  return jnp.minimum(tenths_BxL, RATIOS - 1)


def _sums(values_BxP, predicted_BxP, part_BxL, count, batch) -> jax.Array:
  """Sums and counts of the predicted positions in each bin, [2, count]."""
  part_BxP = readout.at_predictions(part_BxL, batch)
  in_part_BxPxC = jax.nn.one_hot(part_BxP, count) * predicted_BxP[:, :, None]
  return jnp.stack(
    [
      jnp.einsum('bp,bpc->c', values_BxP, in_part_BxPxC),
      jnp.sum(in_part_BxPxC, axis=(0, 1)),
    ]
  )
