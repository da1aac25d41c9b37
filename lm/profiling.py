"""Profiles of a few training steps, for TensorBoard or Perfetto."""

import pathlib
import shutil
from typing import Any

import jax

from lm import hosts

# Steps of a start before those that are traced, if the run is long enough.
_WARMUP = 10


class Trace:
  """Traces `count` steps of this start into WORKDIR/profile.

  A trace is moved there when it is whole: of a run that is stopped meanwhile
  there is none. Use as a context manager; the first process traces.
  """

  def __init__(
    self, workdir: pathlib.Path, *, count: int, first: int, last: int
  ):
    """Knows the steps of this start, from `first` to `last`."""
    self._target = workdir / 'profile'
    self._temporary = workdir / '.profile.tmp'
    self._is_first = hosts.is_first()
    self._count = count = min(count if self._is_first else 0, last - first + 1)
    self._start = min(first + _WARMUP, last - count + 1)
    self._runs = False

  def __enter__(self):
    if self._is_first:  # what a killed one has left
      shutil.rmtree(self._temporary, ignore_errors=True)
    return self

  def __exit__(self, *exception):
    if self._runs:
      self._stop()
      shutil.rmtree(self._temporary, ignore_errors=True)

  def before(self, number: int):
    """Step `number` is about to be dispatched."""
    if self._count and number == self._start:
      jax.profiler.start_trace(str(self._temporary))
      self._runs = True

  def after(self, number: int, outputs: Any):
    """Step `number` has been dispatched and gives `outputs`."""
    if not self._runs or number < self._start + self._count - 1:
      return
    jax.block_until_ready(outputs)
    self._stop()
    for session in self._temporary.glob('plugins/profile/*'):
      target = self._target / 'plugins' / 'profile' / session.name
      target.parent.mkdir(parents=True, exist_ok=True)
      session.rename(target)
    shutil.rmtree(self._temporary)

  def _stop(self):
    jax.profiler.stop_trace()
    self._runs = False
