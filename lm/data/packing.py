"""Planned packing: row r of an epoch is a pure function of (seed, epoch, r).

An iterator that packs as it reads gives other rows for another number of
workers or hosts. Here an epoch's rows are planned from lengths alone: documents
are cut into chunks at offsets drawn anew each epoch, the chunks are shuffled,
and first fit inside windows of 1,024 of them fills the rows. Of a mixture of
sources an epoch has exact shares, see `mixture.py`.
"""

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from lm import types
from lm.data import mixture, seeding, store
from lm.objectives import base

WINDOW = 1024


def cut(lengths: np.ndarray, raw_length: int, offsets: np.ndarray):
  """Chunks of at most `raw_length` tokens, in document order.

  A document that fits is one chunk. A longer one is cut at its offset, and
  every `raw_length` tokens from there.

  lengths [3 10], raw_length 4, offsets [2 1]
  document [0 1 1 1 1]   start [0 0 1 5 9]   stop [3 1 5 9 10]

  Args:
    lengths: [documents].
    offsets: [documents], each in [0, raw_length).

  Returns:
    document, start, stop: int64 [chunks].
  """
  offsets = np.where(lengths <= raw_length, 0, offsets)
  whole = -(-(lengths - offsets) // raw_length)
  counts = np.maximum(whole + (offsets > 0), lengths > 0)
  document = np.repeat(np.arange(len(lengths)), counts)
  nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  edge = np.repeat(np.where(offsets > 0, offsets - raw_length, 0), counts)
  start = np.maximum(edge + nth * raw_length, 0)
  stop = np.minimum(edge + (nth + 1) * raw_length, lengths[document])
  return document, start, stop


def first_fit(sizes: list[int], capacity: int) -> list[list[int]]:
  """Puts each item into the first row with room; rows of item numbers.

  sizes [5 3 2 4], capacity 8 -> [[0 1] [2 3]]
  """
  rows: list[list[int]] = []
  free = np.empty(len(sizes), np.int64)
  for item, size in enumerate(sizes):
    fits = free[: len(rows)] >= size
    row = int(np.argmax(fits)) if fits.any() else len(rows)
    if row == len(rows):
      rows.append([])
      free[row] = capacity
    rows[row].append(item)
    free[row] -= size
  return rows


class EpochPlan:
  """Which chunks make which row, planned window by window as rows are asked."""

  def __init__(
    self,
    spans: mixture.Spans,
    objective: base.Objective,
    *,
    capacity: int,
    seed: int,
    epoch: int,
  ):
    self._objective, self._capacity = objective, capacity
    self._seed, self._epoch = seed, epoch
    offsets = seeding.generator(seed, epoch, seeding.OFFSETS).integers(
      0, objective.raw_length, len(spans.document)
    )
    span, start, stop = cut(
      spans.stop - spans.start, objective.raw_length, offsets
    )
    self.document = spans.document[span]
    self.start, self.stop = start + spans.start[span], stop + spans.start[span]
    order = seeding.generator(seed, epoch, seeding.ORDER)
    self._order = order.permutation(len(self.document))
    self._rows: list[np.ndarray] = []
    # Rows before each planned window, and after the last one.
    self._first_row = [0]

  def row(self, number: int) -> np.ndarray | None:
    """Chunk numbers of a row; None past the end of the epoch."""
    while number >= len(self._rows):
      if not self._plan_window():
        return None
    return self._rows[number]

  def count(self) -> int:
    """Rows in the epoch; plans all of them."""
    while self._plan_window():
      pass
    return len(self._rows)

  def progress(self, number: int) -> float:
    """Share of the epoch's chunks in the rows before `number`."""
    if self.row(number) is None:
      return 1.0
    window = int(np.searchsorted(self._first_row, number, side='right')) - 1
    first, after = self._first_row[window : window + 2]
    done = min(WINDOW, len(self._order) - window * WINDOW)
    inside = done * (number - first) / (after - first)
    return (window * WINDOW + inside) / len(self._order)

  def chunk_generator(self, chunk: int) -> np.random.Generator:
    """The generator that sizes and corrupts a chunk."""
    return seeding.generator(self._seed, self._epoch, seeding.CHUNK, chunk)

  def _plan_window(self) -> bool:
    window = len(self._first_row) - 1
    chunks = self._order[window * WINDOW : (window + 1) * WINDOW]
    if not len(chunks):
      return False
    sizes = [
      self._objective.size(n, self.chunk_generator(chunk))
      for chunk, n in zip(
        chunks.tolist(),
        (self.stop[chunks] - self.start[chunks]).tolist(),
        strict=True,
      )
    ]
    for items in first_fit(sizes, self._capacity):
      self._rows.append(chunks[items])
    self._first_row.append(len(self._rows))
    return True


class Rows:
  """Random access to the rows of the concatenated epochs of one split."""

  def __init__(
    self,
    split: store.Split,
    objective: base.Objective,
    *,
    sequence_length: int,
    seed: int,
    cross_document_attention: bool = False,
    weights: Sequence[float] = (1.0,),
  ):
    """`weights` are those of the split's sources; one: no mixture."""
    self._split, self._objective = split, objective
    self._weights = tuple(weights)
    self._sequence_length, self._seed = sequence_length, seed
    self._cross = cross_document_attention
    self._plans: dict[int, EpochPlan] = {}
    self._epoch_starts = [0]
    self._lock = threading.Lock()

  def rows_in_first_epoch(self, enough: int) -> int:
    """Rows in epoch 0, counted no further than `enough`."""
    with self._lock:
      plan = self._plan(0)
      return enough if plan.row(enough - 1) is not None else plan.count()

  def epochs(self, number: int) -> float:
    """Passes over the split in the rows before row `number`."""
    epoch, plan, row = self._locate(number)
    return epoch + plan.progress(row)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    """Row `number` as the arrays of a Batch without their leading axis."""
    _, plan, row = self._locate(number)
    examples = []
    for chunk in plan.row(row).tolist():
      ids_L, word_L, _ = self._split.read(
        plan.document[chunk], int(plan.start[chunk]), int(plan.stop[chunk])
      )
      record = base.Record(ids_L=ids_L, word_L=word_L - word_L[0])
      rng = plan.chunk_generator(chunk)
      examples.append(self._objective.corrupt(record, rng))
    row = pack(examples, self._sequence_length)
    return merge_segments(row) if self._cross else row

  def _plan(self, epoch: int) -> EpochPlan:
    if epoch not in self._plans:
      # Threads work at the border of two epochs at most.
      for old in [e for e in self._plans if e < epoch - 1]:
        del self._plans[old]
      self._plans[epoch] = EpochPlan(
        mixture.spans(
          self._split.lengths,
          self._split.sources,
          self._weights,
          seed=self._seed,
          epoch=epoch,
        ),
        self._objective,
        capacity=self._sequence_length,
        seed=self._seed,
        epoch=epoch,
      )
    return self._plans[epoch]

  def _locate(self, number: int) -> tuple[int, EpochPlan, int]:
    with self._lock:
      epoch = int(np.searchsorted(self._epoch_starts, number, side='right')) - 1
      while True:
        plan = self._plan(epoch)
        row = number - self._epoch_starts[epoch]
        if plan.row(row) is not None:
          return epoch, plan, row
        if len(self._epoch_starts) == epoch + 1:
          self._epoch_starts.append(self._epoch_starts[epoch] + plan.count())
        epoch += 1


def training_rows(
  config, split: store.Split, objective: base.Objective
) -> Rows:
  """The rows that a run of a resolved config trains on."""
  data = config.data
  return Rows(
    split,
    objective,
    sequence_length=data.sequence_length,
    seed=config.seed,
    cross_document_attention=data.cross_document_attention,
    weights=[weight for _, weight in data.sources] or [1.0],
  )


def pack(examples: list[types.Example], length: int) -> dict[str, np.ndarray]:
  """Lays examples side by side in a row and pads it.

  two examples of 3 and 2 positions, length 6
  segment_L   [1 1 1 2 2 0]
  position_L  [0 1 2 0 1 0]
  """
  row = {
    field.name.removesuffix('_BxL'): np.zeros(length, np.int32)
    for field in dataclasses.fields(types.Batch)
  }
  row['weights'] = np.zeros(length, np.float32)
  start = 0
  for number, example in enumerate(examples, 1):
    n = len(example.tokens_L)
    place = slice(start, start + n)
    for field in dataclasses.fields(types.Example):
      row[field.name.removesuffix('_L')][place] = getattr(example, field.name)
    row['segment'][place] = number
    row['position'][place] = np.arange(n)
    start += n
  return row


def merge_segments(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Makes the examples of a row one causal segment."""
  filled = row['segment'] > 0
  counted = np.where(filled, np.arange(len(filled)), 0).astype(np.int32)
  return {
    **row,
    'segment': filled.astype(np.int32),
    'position': counted,
    'order': counted,
  }


def stack(rows: list[dict[str, np.ndarray]]) -> types.Batch:
  """Rows to a Batch on the host."""
  return types.Batch(
    **{f'{name}_BxL': np.stack([r[name] for r in rows]) for name in rows[0]}
  )


def one_a_row(
  tokens: Sequence[np.ndarray], size: int, length: int
) -> types.Batch:
  """Rows of one causal segment each, to be read and not to be learnt from.

  tokens [[1 2 3] [4]], size 2, length 4
  tokens_BxL   [[1 2 3 0] [4 0 0 0]]
  segment_BxL  [[1 1 1 0] [1 0 0 0]]

  Args:
    tokens: at most `size` arrays of at most `length` ids; rows without one
      are padding.
  """
  tokens_BxL, segment_BxL = np.zeros((2, size, length), np.int32)
  for row, ids in enumerate(tokens):
    tokens_BxL[row, : len(ids)] = ids
    segment_BxL[row, : len(ids)] = 1
  position_BxL = np.tile(np.arange(length, dtype=np.int32), (size, 1))
  return types.Batch(
    tokens_BxL=tokens_BxL,
    targets_BxL=np.zeros((size, length), np.int32),
    weights_BxL=np.zeros((size, length), np.float32),
    order_BxL=position_BxL,
    segment_BxL=segment_BxL,
    position_BxL=position_BxL,
  )


def local_batch(
  rows: Rows,
  number: int,
  batch_size: int,
  local_rows: np.ndarray,
) -> types.Batch:
  """The rows of batch `number` that this process holds."""
  first = number * batch_size
  return stack([rows[first + int(r)] for r in local_rows])
