"""Planned packing: row r of an epoch is a pure function of (seed, epoch, r).

An iterator that packs as it reads gives other rows for another number of
workers or hosts. Here an epoch's rows are planned from lengths alone: documents
are cut into chunks at offsets drawn anew each epoch, the chunks are shuffled,
and first fit inside windows of 1,024 of them fills the rows. An epoch has exact
shares of a mixture's sources, see `mixture.py`; a pair is never cut, see
`pairs.py`.
"""

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from lm import field as field_lib, types
from lm.data import mixture, pairs, seeding, store

WINDOW = 1024
# Exclusive upper bound of an epoch's first place.
_FIRST_PLACES = 2**20

FIELDS = field_lib.section(
  sequence_length=field_lib.Field(
    256,
    'Positions that a row processes, both sides of an encoder-decoder '
    'together.',
    least=2,
  ),
  batch_size=field_lib.Field(16, 'Rows of a batch, over all devices.', least=1),
  cross_document_attention=field_lib.Field(
    False,
    'Makes a row one segment: attention crosses the documents packed in it.',
  ),
)


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


def first_fit(
  sizes: Sequence[types.Size], capacity: types.Size
) -> list[list[int]]:
  """Puts each item into the first row that it fits; item numbers by row.

  sizes of [5 3 2 4] tokens, a capacity of 8 tokens -> [[0 1] [2 3]]
  """
  # A capacity of 0 predictions means no limit: all positions are read out.
  limits_3 = np.array(
    [
      capacity.tokens,
      capacity.encoder_tokens,
      capacity.predictions or np.iinfo(np.int64).max,
    ]
  )
  rows: list[list[int]] = []
  free = np.empty((len(sizes), 3), np.int64)
  for item, size in enumerate(sizes):
    taken_3 = (size.tokens, size.encoder_tokens, size.predictions)
    fits = (free[: len(rows)] >= taken_3).all(axis=1)
    row = int(np.argmax(fits)) if fits.any() else len(rows)
    if row == len(rows):
      rows.append([])
      free[row] = limits_3
    rows[row].append(item)
    free[row] -= taken_3
  return rows


@dataclasses.dataclass(frozen=True)
class Item:
  """An example in a row: number `part` of those made of a chunk."""

  chunk: int
  part: int


class EpochPlan:
  """The examples of each row, planned by window when rows are requested."""

  def __init__(
    self,
    ranges: mixture.Ranges,
    objective: types.Objective,
    *,
    seed: int,
    epoch: int,
    input_lengths: np.ndarray | None = None,
  ):
    """`input_lengths` are those of the split; required for pairs."""
    self._objective, self._input_lengths = objective, input_lengths
    self._seed, self._epoch = seed, epoch
    offsets = seeding.generator(seed, epoch, seeding.OFFSETS).integers(
      0, objective.raw_length, len(ranges.document)
    )
    index, start, stop = cut(
      ranges.stop - ranges.start, objective.raw_length, offsets
    )
    self.document = ranges.document[index]
    base = ranges.start[index]
    self.start, self.stop = start + base, stop + base
    order = seeding.generator(seed, epoch, seeding.ORDER)
    self._order = order.permutation(len(self.document))
    # Place of each chunk in the order. Counted from 0, the only chunk of a
    # small corpus would have the same place in all epochs.
    self.place = np.empty_like(self._order)
    self.place[self._order] = np.arange(len(self._order))
    self.place += order.integers(_FIRST_PLACES)
    self._rows: list[list[Item]] = []
    # Number of rows before each planned window, and after the last one.
    self._first_row = [0]

  def row(self, number: int) -> list[Item] | None:
    """The items of a row; None past the end of the epoch."""
    while number >= len(self._rows):
      if not self._plan_window():
        return None
    return self._rows[number]

  def count(self) -> int:
    """Number of rows in the epoch; plans all of them."""
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
    """The random generator that sizes and corrupts a chunk."""
    return seeding.generator(self._seed, self._epoch, seeding.CHUNK, chunk)

  def _plan_window(self) -> bool:
    window = len(self._first_row) - 1
    chunks = self._order[window * WINDOW : (window + 1) * WINDOW].tolist()
    if not chunks:
      return False
    items, sizes = [], []
    for chunk in chunks:
      found = self._objective.sizes(
        self._tokens(chunk), self.chunk_generator(chunk)
      )
      items += [Item(chunk, part) for part in range(len(found))]
      sizes += found
    for row in first_fit(sizes, self._objective.capacity):
      self._rows.append([items[i] for i in row])
    self._first_row.append(len(self._rows))
    return True

  def _tokens(self, chunk: int) -> int | tuple[int, int]:
    """Numbers of tokens: of a chunk, or of the two sides of a pair."""
    n = int(self.stop[chunk] - self.start[chunk])
    if not self._objective.pairs:
      return n
    inputs = int(self._input_lengths[self.document[chunk]])
    return inputs, n - inputs


class Rows:
  """Random access to the rows of the concatenated epochs of one split."""

  def __init__(
    self,
    split: store.Split,
    objective: types.Objective,
    *,
    seed: int,
    cross_document_attention: bool = False,
    weights: Sequence[float] = (1.0,),
  ):
    """`weights` are those of the split's sources; a single one: no mixture.

    Raises:
      UserError: the objective needs pairs, and none fits a row.
    """
    self._split, self._objective = split, objective
    self._kept = np.arange(len(split))
    if objective.pairs:
      self._kept = pairs.fitting(split, objective)
    self._weights = tuple(weights)
    self._seed = seed
    self._cross = cross_document_attention
    self._plans: dict[int, EpochPlan] = {}
    self._epoch_starts = [0]
    self._lock = threading.Lock()

  def left_out(self, name: str) -> str:
    """Message on the pairs that do not fit a row; '' if all do.

    Args:
      name: name of the split.
    """
    return pairs.left_out(self._split, self._objective, len(self._kept), name)

  @property
  def tokens(self) -> int:
    """Number of tokens of the documents that rows are made of."""
    return int(self._split.lengths[self._kept].sum())

  def rows_in_first_epoch(self, limit: int) -> int:
    """Number of rows in epoch 0, or `limit` if there are more."""
    with self._lock:
      plan = self._plan(0)
      return limit if plan.row(limit - 1) is not None else plan.count()

  def epochs(self, number: int) -> float:
    """Number of passes over the split in the rows before row `number`."""
    epoch, plan, row = self._locate(number)
    return epoch + plan.progress(row)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    """Row `number` as the arrays of a Batch without their leading axis."""
    _, plan, row = self._locate(number)
    items = plan.row(row)
    # A row can hold several examples of one chunk, which is then read once.
    made = {
      chunk: self._objective.corrupt(*self._record(plan, chunk))
      for chunk in {item.chunk for item in items}
    }
    examples = [made[item.chunk][item.part] for item in items]
    row = pack(examples, self._objective.capacity, self._objective.arrays)
    return merge_segments(row) if self._cross else row

  def _record(self, plan: EpochPlan, chunk: int):
    """The record of a chunk, and the generator that it is corrupted with."""
    ids_L, word_L, _ = self._split.read(
      plan.document[chunk], int(plan.start[chunk]), int(plan.stop[chunk])
    )
    record = types.Record(
      ids_L=ids_L, word_L=word_L - word_L[0], place=int(plan.place[chunk])
    )
    return record, plan.chunk_generator(chunk)

  def _plan(self, epoch: int) -> EpochPlan:
    if epoch not in self._plans:
      # Threads work on at most two neighbouring epochs.
      for old in [e for e in self._plans if e < epoch - 1]:
        del self._plans[old]
      ranges = mixture.ranges(
        self._split.lengths[self._kept],
        self._split.sources[self._kept],
        self._weights,
        seed=self._seed,
        epoch=epoch,
        whole=self._objective.pairs,
      )
      self._plans[epoch] = EpochPlan(
        dataclasses.replace(ranges, document=self._kept[ranges.document]),
        self._objective,
        seed=self._seed,
        epoch=epoch,
        input_lengths=self._split.input_lengths,
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
  config, split: store.Split, objective: types.Objective
) -> Rows:
  """The rows that a run of a resolved config trains on."""
  data = config.data
  return Rows(
    split,
    objective,
    seed=config.seed,
    cross_document_attention=data.cross_document_attention,
    weights=[weight for _, weight in data.sources] or [1.0],
  )


def pack(
  examples: Sequence[types.Example],
  capacity: types.Size,
  arrays: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Packs examples side by side into a row and pads it.

  two examples of 3 and 2 positions, capacity 6
  segment_L   [1 1 1 2 2 0]
  position_L  [0 1 2 0 1 0]

  with the weights [0 1 0] and [0 1], and 3 predictions
  predict_P   [1 4 0]

  Args:
    arrays: names of the optional arrays that the row has, see
      `types.Objective.arrays`; 0 where an example lacks one.

  Returns:
    The arrays of a `types.Batch` without their leading axis, by name.
  """
  for example in examples:
    _check_arrays(example, arrays)
  row = _side(
    examples, [*_ALWAYS, *(f'{name}_L' for name in arrays)], capacity.tokens
  )
  if capacity.encoder_tokens:
    side = _side(examples, ['encoder_tokens_M'], capacity.encoder_tokens)
    row['encoder_tokens'] = side['encoder_tokens']
    row['encoder_segment'] = side['segment']
    row['encoder_position'] = side['position']
  if capacity.predictions:
    (places,) = np.nonzero(row['weights'])
    row['predict'] = np.zeros(capacity.predictions, np.int32)
    row['predict'][: len(places)] = places
  return row


# Arrays that every Example has, and those that it can have.
_ALWAYS = ('tokens_L', 'targets_L', 'weights_L', 'order_L')
_OPTIONAL = ('type_L', 'component_L')
# Arrays of another type than int32.
_DTYPES = {'weights_L': np.float32}


def _check_arrays(example: types.Example, arrays: Sequence[str]):
  """Raises ValueError for an array that would be lost."""
  for field in _OPTIONAL:
    if field[:-2] not in arrays and getattr(example, field) is not None:
      raise ValueError(
        f'an example has {field}, which Objective.arrays={tuple(arrays)} lacks'
      )


def _side(
  examples: Sequence[types.Example], fields: Sequence[str], length: int
) -> dict[str, np.ndarray]:
  """The fields of one side of a row, its segments and positions, by name.

  A segment has the same number on both sides.
  """
  row = {name: np.zeros(length, np.int32) for name in ('segment', 'position')}
  for field in fields:
    dtype = _DTYPES.get(field, np.int32)
    row[field[:-2]] = np.zeros(length, dtype)
  start = 0
  for number, example in enumerate(examples, 1):
    n = len(getattr(example, fields[0]))
    place = slice(start, start + n)
    for field in fields:
      values = getattr(example, field)
      if values is not None:
        row[field[:-2]][place] = values
    row['segment'][place] = number
    row['position'][place] = np.arange(n)
    start += n
  return row


def merge_segments(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Merges the examples of a row into one causal segment."""
  filled = row['segment'] > 0
  counted = np.where(filled, np.arange(len(filled)), 0).astype(np.int32)
  return {
    **row,
    'segment': filled.astype(np.int32),
    'position': counted,
    'order': counted,
  }


def stack(rows: Sequence[dict[str, np.ndarray]]) -> types.Batch:
  """Stacks rows into a Batch on the host."""
  return types.Batch(
    **{_FIELDS[name]: np.stack([row[name] for row in rows]) for name in rows[0]}
  )


# Name in a row -> field of a Batch, which has its axes at the end.
_FIELDS = {
  field.name.rpartition('_Bx')[0]: field.name
  for field in dataclasses.fields(types.Batch)
}


def local_batch(
  rows: Rows,
  number: int,
  batch_size: int,
  local_rows: np.ndarray,
) -> types.Batch:
  """The rows of batch `number` that this process holds."""
  first = number * batch_size
  return stack([rows[first + int(r)] for r in local_rows])
