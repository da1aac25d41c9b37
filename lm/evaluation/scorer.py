"""Scores text: packs queries into rows, runs one compiled function, sums bits.

`scoring_methods.py` builds the queries.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm import field, types
from lm.data import packing
from lm.evaluation import (
  passages as passages_lib,
  scoring_methods,
)
from lm.models import readout
from lm.runtime import sharding

# Shares of a row's positions to read out. A batch uses the smallest one that
# holds the predictions of its rows; each is compiled on first use.
_READ_OUT = (1 / 8, 1 / 2, 1)

FIELDS = field.section(
  batch_size=field.Field(
    16, 'Rows scored at a time, over all devices.', least=1
  ),
  bound_samples=field.Field(
    64,
    'Masked copies of a window whose score is a bound.',
    least=2,  # One tells nothing of its error.
  ),
)


class Scorer:
  """Scores passages by one method; rows have the same size as in training."""

  def __init__(
    self,
    method: scoring_methods.Method,
    objective: types.Objective,
    model: types.Model,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    samples: int = 64,
    one_a_row: bool = False,
  ):
    """Stores the settings; compilation happens on first use.

    Args:
      method: scoring method.
      objective, model: objective and model to score with.
      mesh: devices.
      batch_size: rows per batch, over all devices.
      samples: number of samples per window, for sampled methods.
      one_a_row: puts a single query into each row, for attention kernels that
        ignore segments.

    Raises:
      UserError: rows are too short for any window.
    """
    self.method, self._objective = method, objective
    self._mesh, self._batch_size = mesh, batch_size
    self._samples, self._one_a_row = samples, one_a_row
    self._limits = scoring_methods.limits(method, objective)
    self._read = jax.jit(
      _make_read(model), out_shardings=sharding.replicated(mesh)
    )

  def count(self, lengths: Iterable[tuple[int, int]]) -> int:
    """Number of queries of passages of (context ids, scored ids)."""
    return sum(
      self.method.count(stop - scored, self._samples)
      for context, n in lengths
      for _, scored, stop in passages_lib.cut_windows(
        context, context + n, self._limits
      )
    )

  def __call__(
    self,
    params: types.Params,
    passages: Iterable[passages_lib.Passage],
    allowed_V: np.ndarray,
    *,
    advance: Callable[[int], None] = lambda queries: None,
  ) -> passages_lib.Score:
    """Returns the sums over all passages, and over those of each source.

    Args:
      params: parameters of the model.
      passages: passages to score.
      allowed_V: ids that can be text, see `Tokenizer.allowed_ids`.
      advance: called with the number of queries scored since the last call.
    """
    score, by_source = passages_lib.Score(), {}
    for parts in self.batches(params, passages, allowed_V, advance=advance):
      for part in parts:
        score = score.add(part)
        source = part.passage.source
        by_source[source] = by_source.get(source, passages_lib.Score()).add(
          part
        )
    return dataclasses.replace(score, by_source=by_source)

  def batches(
    self,
    params: types.Params,
    passages: Iterable[passages_lib.Passage],
    allowed_V: np.ndarray,
    *,
    advance: Callable[[int], None] = lambda queries: None,
  ) -> Iterator[list[passages_lib.Part]]:
    """Yields the scores of the windows, in order, as they become available.

    Keeps little more than one batch in memory.
    """
    capacity = self._objective.capacity
    enough = self._batch_size * capacity.positions
    windows: collections.deque[_Window] = collections.deque()
    waiting: list[_Pending] = []
    positions = 0
    for window in self._windows(passages):
      windows.append(window)
      waiting += window.pending()
      positions += sum(pending.size.positions for pending in window.pending())
      if positions >= enough:
        waiting = self._score(params, waiting, allowed_V, advance)
        positions = sum(pending.size.positions for pending in waiting)
        yield self._complete(windows)
    self._score(params, waiting, allowed_V, advance, last=True)
    yield self._complete(windows)

  def _windows(
    self, passages: Iterable[passages_lib.Passage]
  ) -> Iterator['_Window']:
    for number, passage in enumerate(passages):
      before = len(passage.context)
      ids = np.concatenate([passage.context, passage.scored]).astype(np.int32)
      for start, first, stop in passages_lib.cut_windows(
        before, len(ids), self._limits
      ):
        queries = self.method.queries(
          self._objective,
          ids[start:first],
          ids[first:stop],
          self._samples,
          # Independent of the run and the batch size.
          np.random.default_rng([number, first]),
        )
        for query in queries:
          scoring_methods.check(query, ids[first:stop])
        yield _Window(passage, first - before, stop - first, queries)

  def _complete(self, windows) -> list[passages_lib.Part]:
    """Removes the first windows, up to one that still waits for scores."""
    parts = []
    while windows and windows[0].is_complete():
      parts.append(windows.popleft().part(sampled=self.method.sampled))
    return parts

  def _score(
    self, params, waiting, allowed_V, advance, *, last: bool = False
  ) -> list['_Pending']:
    """Scores full batches, or all if `last`; returns the remaining queries."""
    if self._one_a_row:
      rows = [[number] for number in range(len(waiting))]
    else:
      sizes = [pending.size for pending in waiting]
      rows = packing.first_fit(
        sizes, dataclasses.replace(self._objective.capacity, predictions=0)
      )
    whole = len(rows) // self._batch_size * self._batch_size
    now = len(rows) if last else whole
    for first in range(0, now, self._batch_size):
      batch = rows[first : first + self._batch_size]
      self._score_batch(
        params, [[waiting[i] for i in row] for row in batch], allowed_V
      )
      advance(sum(map(len, batch)))
    left = sorted(itertools.chain.from_iterable(rows[now:]))
    return [waiting[i] for i in left]

  def _score_batch(self, params, rows: list[list['_Pending']], allowed_V):
    max_predictions = max(
      sum(pending.size.predictions for pending in row) for row in rows
    )
    tokens = self._objective.capacity.tokens
    capacity = dataclasses.replace(
      self._objective.capacity,
      predictions=next(
        p
        for p in (math.ceil(x * tokens) for x in _READ_OUT)
        if p >= max_predictions
      ),
    )
    examples = [[pending.query.example for pending in row] for row in rows]
    examples += [[]] * (self._batch_size - len(rows))
    local = sharding.local_rows(self._mesh, self._batch_size)
    batch = packing.stack(
      [
        packing.pack(examples[r], capacity, self._objective.arrays)
        for r in local
      ]
    )
    batch = sharding.put_batch(self._mesh, batch, self._batch_size)
    found = jax.device_get(self._read(params, batch, allowed_V))
    # Rows of padding follow the rows of queries.
    for row, bits_P, mass_P in zip(rows, *found, strict=False):
      start = 0
      for pending in row:
        stop = start + pending.size.predictions
        pending.add(bits_P[start:stop], mass_P[start:stop])
        start = stop


def make(
  method: scoring_methods.Method,
  objective: types.Objective,
  model: types.Model,
  mesh: jax.sharding.Mesh,
  config,
) -> Scorer:
  """Builds the scorer of a method, for a resolved config."""
  return Scorer(
    method,
    objective,
    model,
    mesh,
    batch_size=config.evaluate.batch_size,
    samples=config.evaluate.bound_samples,
    # The attention kernel chosen for such a run may ignore segments.
    one_a_row=config.data.cross_document_attention,
  )


class _Window:
  """Scored ids [first, first + n) of a passage, and their scores so far."""

  def __init__(self, passage, first: int, n: int, queries):
    self._passage, self._first = passage, first
    self._bits_n, self._mass_n = np.zeros((2, n))
    # Bits that each query contributes to the window.
    self._bits_q = np.zeros(len(queries))
    self._pending = [
      _Pending(self, i, query) for i, query in enumerate(queries)
    ]
    self._open = len(queries)

  def pending(self) -> list['_Pending']:
    return self._pending

  def add(self, index: int, query: scoring_methods.Query, bits_k, mass_k):
    bits_k = bits_k.astype(np.float64) * query.factor
    self._bits_n[query.places_k] += bits_k
    self._mass_n[query.places_k] += mass_k.astype(np.float64) * query.factor
    self._bits_q[index] = bits_k.sum()
    self._open -= 1

  def is_complete(self) -> bool:
    return not self._open

  def part(self, *, sampled: bool) -> passages_lib.Part:
    variance = _variance(self._bits_q) if sampled else 0.0
    return passages_lib.Part(
      self._passage, self._first, self._bits_n, self._mass_n, variance
    )


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A query of a window that waits for its scores."""

  window: _Window
  index: int
  query: scoring_methods.Query

  @functools.cached_property
  def size(self) -> types.Size:
    example = self.query.example
    encoder = example.encoder_tokens_M
    return types.Size(
      tokens=len(example.tokens_L),
      encoder_tokens=0 if encoder is None else len(encoder),
      predictions=len(self.query.places_k),
    )

  def add(self, bits_k: np.ndarray, mass_k: np.ndarray):
    self.window.add(self.index, self.query, bits_k, mass_k)


def _variance(bits_q: np.ndarray) -> float:
  """Variance of the sum of a window's samples, one per stratum.

  Estimated from neighbouring strata: the mean of the variances within strata is
  at most half of the mean square of successive differences, which include the
  differences between strata (Wolter 2007, Introduction to Variance Estimation,
  section 8.2).
  """
  n = len(bits_q)
  return float(n * np.sum(np.diff(bits_q) ** 2) / (2 * (n - 1)))


def _make_read(model: types.Model):
  """(params, batch, allowed [V]) -> bits and special mass, each [B, P]."""

  def read(params, batch, allowed_V):
    log_p_BxP, mass_BxP = model.token_log_probs(params, batch, allowed_V)
    predicted_BxP = readout.predicted(batch)
    bits_BxP = jnp.where(predicted_BxP, -log_p_BxP / jnp.log(2.0), 0.0)
    return bits_BxP, jnp.where(predicted_BxP, mass_BxP, 0.0)

  return read
