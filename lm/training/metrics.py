"""Scalars of a run: metrics.jsonl, TensorBoard, and the sums between lines."""

import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tensorboardX

from lm import objectives, types
from lm.runtime import files, hosts
from lm.training import flops as flops_lib


class Writer:
  """Appends lines to metrics.jsonl and the same scalars to TensorBoard.

  Only the first of several processes writes; in the others calls do nothing.
  """

  def __init__(self, workdir: pathlib.Path, *, length: int, step: int):
    """Continues after the first `length` bytes of the file, at `step`.

    Later lines are those of a run that was stopped before its next checkpoint;
    they are cut off, and written again as training gets there.
    """
    self._file = None
    if not hosts.is_first():
      return
    self._path = workdir / 'metrics.jsonl'
    files.truncate(self._path, length)
    self._file = open(self._path, 'ab')  # noqa: SIM115
    folder = workdir / 'tensorboard'
    purge = step + 1 if folder.exists() else None
    self._tensorboard = tensorboardX.SummaryWriter(
      str(folder), purge_step=purge
    )

  def write(self, step: int, split: str, values: Mapping[str, Any]):
    """Writes a line. Values that are None are left out; lists may hold None.

    TensorBoard receives numbers only.
    """
    if self._file is None:
      return
    values = {k: v for k, v in values.items() if v is not None}
    line = json.dumps({'step': step, 'split': split, **values})
    self._file.write(line.encode() + b'\n')
    self._file.flush()
    for name, value in values.items():
      if isinstance(value, int | float):
        self._tensorboard.add_scalar(f'{split}/{name}', value, step)

  def sync(self) -> int:
    """Flushes all lines to the disk and returns the file's length in bytes."""
    if self._file is None:
      return 0
    self._file.flush()
    os.fsync(self._file.fileno())
    self._tensorboard.flush()
    return self._file.tell()

  def close(self):
    """Syncs and closes both."""
    if self._file is None:
      return
    self.sync()
    self._file.close()
    self._tensorboard.close()


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run folder, without an incomplete one at the end."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = []
  for line in path.read_bytes().split(b'\n')[:-1]:
    try:
      lines.append(json.loads(line))
    except ValueError:
      logging.warning('%s: skipping a line that is not JSON', path)
  return lines


class Accumulator:
  """Sums of what steps return, since the last line and since the start.

  Its state is part of a checkpoint, so that a resumed run logs the same lines:
  JSON stores Python floats without loss.
  """

  COUNTERS = (
    *('tokens', 'positions', 'loss_tokens', 'text_loss_tokens'),
    'flops',
  )

  def __init__(self, state: Mapping[str, Any] | None = None):
    state = state or {}
    self._terms: dict[str, list[float]] = {
      objectives.RENAMED.get(name, name): list(pair)
      for name, pair in state.get('terms', {}).items()
    }
    self.counters: dict[str, int] = {
      name: state.get('counters', {}).get(name, 0) for name in self.COUNTERS
    }

  def add(self, metrics: Mapping[str, Any], positions: int, flops: int):
    """Adds a step's metrics, already on the host, and its model FLOPs."""
    for name, (total, weight) in metrics['terms'].items():
      pair = self._terms.setdefault(name, [0.0, 0.0])
      pair[0] += float(total)
      pair[1] += float(weight)
    self.counters['positions'] += positions
    self.counters['flops'] += flops
    for name in ('tokens', 'loss_tokens', 'text_loss_tokens'):
      self.counters[name] += int(metrics[name])

  def losses(self, coefficients: Mapping[str, float]) -> dict[str, float]:
    """`loss` and `loss/NAME`, means since the last call; starts new sums."""
    values = term_losses(self._terms, coefficients)
    self._terms = {}
    return values

  def padding_share(self) -> float:
    """Share of positions without a token since the start, both sides."""
    return 1 - self.counters['tokens'] / self.counters['positions']

  def totals(self, *, epochs: float) -> dict[str, float]:
    """Figures of all that was read since the start, for a line."""
    return {
      **self.counters,
      'padding_share': self.padding_share(),
      'epochs': epochs,
    }

  def state(self) -> dict[str, Any]:
    """JSON for `__init__`; a copy, which later steps do not change."""
    return {
      'terms': {name: list(pair) for name, pair in self._terms.items()},
      'counters': dict(self.counters),
    }


class Speed:
  """Speed of steps, from one `restart` or `lap` to the next `lap`."""

  def __init__(
    self,
    step: int,
    *,
    positions: int,
    flops: int,
    devices: Sequence[jax.Device],
  ):
    """Starts after step `step`.

    Args:
      positions, flops: positions and model FLOPs of one step.
      devices: those that share a step.
    """
    self._positions, self._flops = positions, flops
    self._devices = devices
    self.restart(step)

  def restart(self, step: int):
    """Leaves out the time up to now, in which no step ran."""
    self._then, self._step = time.monotonic(), step

  def lap(self, step: int) -> dict[str, float | None]:
    """`tokens_per_second` and, where the peak is known, utilisation."""
    then, before = self._then, self._step
    self.restart(step)
    rate = (step - before) / (self._then - then)
    return {
      'tokens_per_second': rate * self._positions,
      'model_flops_utilization': flops_lib.utilization(
        rate * self._flops, self._devices
      ),
    }


def term_losses(
  terms: Mapping[str, Any], coefficients: Mapping[str, float]
) -> dict[str, float]:
  """`loss` and `loss/NAME` from sums and weights; skips those of weight 0."""
  means = {n: total / weight for n, (total, weight) in terms.items() if weight}
  values = {
    f'loss/{name}': value
    for name, value in means.items()
    if name != types.TRAINED
  }
  if means:
    values['loss'] = sum(
      coefficient * means.get(name, 0.0)
      for name, coefficient in coefficients.items()
    )
  return values
