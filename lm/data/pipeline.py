"""Batches from grain, built by threads ahead of the training step.

Batch k is a pure function of k, so the data position of a run is k alone and
does not depend on threads, processes or mesh.
"""

import dataclasses
from collections.abc import Iterator

import grain.python as grain
import numpy as np

from lm import field, types
from lm.data import packing


def _unread_without_threads(config, value) -> str | None:
  del value
  if config.data.threads:
    return None
  return (
    'is not read with data.threads=0, which builds nothing ahead; leave it '
    'out, or give more threads'
  )


FIELDS = field.section(
  threads=field.Field(
    2,
    'Threads that build batches ahead; 0: none.',
    least=0,
    may_change=True,
  ),
  prefetch=field.Field(
    8,
    'Batches built ahead by threads.',
    least=1,
    unread=_unread_without_threads,
    may_change=True,
  ),
)


@dataclasses.dataclass(frozen=True)
class _Batches:
  """A random-access source whose item i is batch `first + i`."""

  rows: packing.Rows
  batch_size: int
  local_rows: np.ndarray
  first: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.first

  def __getitem__(self, index: int) -> types.Batch:
    return packing.local_batch(
      self.rows, self.first + index, self.batch_size, self.local_rows
    )


def iterate(
  rows: packing.Rows,
  *,
  batch_size: int,
  local_rows: np.ndarray,
  first: int,
  stop: int,
  threads: int,
  prefetch: int,
) -> Iterator[types.Batch]:
  """Batches first, first + 1, ... stop - 1, this process's rows only.

  Args:
    local_rows: rows of the global batch to build, see `sharding.local_rows`.
    threads: number of threads that build batches; 0 uses the caller's.
    prefetch: number of batches built ahead.
  """
  source = _Batches(rows, batch_size, local_rows, first, stop)
  if not len(source):
    return iter(())
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=prefetch if threads else 0
  )
  return iter(grain.MapDataset.source(source).to_iter_dataset(options))
