"""Queries to bits: packed into rows, read by one compiled function, summed.

What is asked about a window of text is in `queries.py`.
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
  scoring_methods as queries_lib,
)
from lm.models import readout
from lm.runtime import sharding

# Shares of a row's positions that are read out: one of these, the least that
# holds what the rows of a batch predict. Each is compiled when it is needed.
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
  """Scores passages in one way, queries packed into rows of training's size."""

  def __init__(
    self,
    kind: queries_lib.Kind,
    objective: types.Objective,
    model: types.Model,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    samples: int = 64,
    one_a_row: bool = False,
  ):
    """Compiles nothing yet.

    Args:
      batch_size: rows at a time, over all devices.
      samples: of a window, where it is sampled.
      one_a_row: what computes attention does not keep segments apart.

    Raises:
      UserError: rows are too short for any window.
    """
    self.kind, self._objective = kind, objective
    self._mesh, self._batch_size = mesh, batch_size
    self._samples, self._one_a_row = samples, one_a_row
    self._room = queries_lib.room(kind, objective)
    self._read = jax.jit(
      _make_read(model), out_shardings=sharding.replicated(mesh)
    )

  def count(self, lengths: Iterable[tuple[int, int]]) -> int:
    """Queries of passages, from their numbers of given and of scored ids."""
    return sum(
      self.kind.count(stop - scored, self._samples)
      for context, n in lengths
      for _, scored, stop in passages_lib.spans(
        context, context + n, self._room
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
    """The sums over all passages, and over those of each source.

    Args:
      allowed_V: see `scoring.allowed_ids`.
      advance: is told how many queries were answered since the last call.
    """
    score, of_source = passages_lib.Score(), {}
    for parts in self.batches(params, passages, allowed_V, advance=advance):
      for part in parts:
        score = score.add(part)
        source = part.passage.source
        of_source[source] = of_source.get(source, passages_lib.Score()).add(
          part
        )
    return dataclasses.replace(score, of_source=of_source)

  def batches(
    self,
    params: types.Params,
    passages: Iterable[passages_lib.Passage],
    allowed_V: np.ndarray,
    *,
    advance: Callable[[int], None] = lambda queries: None,
  ) -> Iterator[list[passages_lib.Part]]:
    """What the windows cost, in order, as they are answered.

    Holds little more than a batch besides the passages that it is of.
    """
    capacity = self._objective.capacity
    enough = self._batch_size * capacity.positions
    windows: collections.deque[_Window] = collections.deque()
    waiting: list[_Asked] = []
    positions = 0
    for window in self._windows(passages):
      windows.append(window)
      waiting += window.asked()
      positions += sum(asked.size.positions for asked in window.asked())
      if positions >= enough:
        waiting = self._answer(params, waiting, allowed_V, advance)
        positions = sum(asked.size.positions for asked in waiting)
        yield self._complete(windows)
    self._answer(params, waiting, allowed_V, advance, last=True)
    yield self._complete(windows)

  def _windows(
    self, passages: Iterable[passages_lib.Passage]
  ) -> Iterator['_Window']:
    for number, passage in enumerate(passages):
      before = len(passage.context)
      ids = np.concatenate([passage.context, passage.scored]).astype(np.int32)
      for start, first, stop in passages_lib.spans(
        before, len(ids), self._room
      ):
        queries = self.kind.queries(
          self._objective,
          ids[start:first],
          ids[first:stop],
          self._samples,
          # The same for every run and batch size.
          np.random.default_rng([number, first]),
        )
        for query in queries:
          queries_lib.check(query, ids[first:stop])
        yield _Window(passage, first - before, stop - first, queries)

  def _complete(self, windows) -> list[passages_lib.Part]:
    """Takes away the first windows, up to one that still waits."""
    parts = []
    while windows and windows[0].is_complete():
      parts.append(windows.popleft().part(sampled=self.kind.sampled))
    return parts

  def _answer(
    self, params, waiting, allowed_V, advance, *, last: bool = False
  ) -> list['_Asked']:
    """Answers whole batches of rows, at last all; what still waits."""
    if self._one_a_row:
      rows = [[number] for number in range(len(waiting))]
    else:
      sizes = [asked.size for asked in waiting]
      rows = packing.first_fit(
        sizes, dataclasses.replace(self._objective.capacity, predictions=0)
      )
    whole = len(rows) // self._batch_size * self._batch_size
    now = len(rows) if last else whole
    for first in range(0, now, self._batch_size):
      batch = rows[first : first + self._batch_size]
      self._answer_batch(
        params, [[waiting[i] for i in row] for row in batch], allowed_V
      )
      advance(sum(map(len, batch)))
    left = sorted(itertools.chain.from_iterable(rows[now:]))
    return [waiting[i] for i in left]

  def _answer_batch(self, params, rows: list[list['_Asked']], allowed_V):
    most = max(sum(asked.size.predictions for asked in row) for row in rows)
    tokens = self._objective.capacity.tokens
    capacity = dataclasses.replace(
      self._objective.capacity,
      predictions=next(
        p for p in (math.ceil(x * tokens) for x in _READ_OUT) if p >= most
      ),
    )
    examples = [[asked.query.example for asked in row] for row in rows]
    examples += [[]] * (self._batch_size - len(rows))
    local = sharding.local_rows(self._mesh, self._batch_size)
    batch = packing.stack(
      [
        packing.pack(examples[r], capacity, self._objective.arrays)
        for r in local
      ]
    )
    batch = sharding.put_batch(self._mesh, batch, self._batch_size)
    answers = jax.device_get(self._read(params, batch, allowed_V))
    # Rows of padding are behind those that were asked.
    for row, bits_P, mass_P in zip(rows, *answers, strict=False):
      start = 0
      for asked in row:
        stop = start + asked.size.predictions
        asked.answer(bits_P[start:stop], mass_P[start:stop])
        start = stop


def make(
  kind: queries_lib.Kind,
  objective: types.Objective,
  model: types.Model,
  mesh: jax.sharding.Mesh,
  config,
) -> Scorer:
  """A scorer of this kind, for a resolved config."""
  return Scorer(
    kind,
    objective,
    model,
    mesh,
    batch_size=config.evaluate.batch_size,
    samples=config.evaluate.bound_samples,
    # Then an attention kernel may be chosen that knows no segments.
    one_a_row=config.data.cross_document_attention,
  )


class _Window:
  """Scored ids [first, first + n) of a passage, and the answers about them."""

  def __init__(self, passage, first: int, n: int, queries):
    self._passage, self._first = passage, first
    self._bits_n, self._mass_n = np.zeros((2, n))
    # Of each query, its part of the window's bits.
    self._bits_q = np.zeros(len(queries))
    self._asked = [_Asked(self, i, query) for i, query in enumerate(queries)]
    self._open = len(queries)

  def asked(self) -> list['_Asked']:
    return self._asked

  def answer(self, index: int, query: queries_lib.Query, bits_k, mass_k):
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
class _Asked:
  """A query of a window that waits for its answer."""

  window: _Window
  index: int
  query: queries_lib.Query

  @functools.cached_property
  def size(self) -> types.Size:
    example = self.query.example
    encoder = example.encoder_tokens_M
    return types.Size(
      tokens=len(example.tokens_L),
      encoder_tokens=0 if encoder is None else len(encoder),
      predictions=len(self.query.places_k),
    )

  def answer(self, bits_k: np.ndarray, mass_k: np.ndarray):
    self.window.answer(self.index, self.query, bits_k, mass_k)


def _variance(bits_q: np.ndarray) -> float:
  """Of the sum of a window's samples, one a stratum, from neighbours.

  The mean of the strata's variances is at most half of the mean square of
  successive differences, which hold the strata's distance, too (Wolter 2007,
  Introduction to Variance Estimation, section 8.2).
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
