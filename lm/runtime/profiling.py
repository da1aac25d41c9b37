"""Profiles of a few training steps, for TensorBoard or Perfetto."""

import pathlib
import shutil

import jax

from lm.runtime import hosts

# Steps before those that are traced, if the run is long enough.
_WARMUP = 10


class Trace:
  """Traces `count` steps of this start into WORKDIR/profile.

  A trace is moved there when it is complete: a run that stops before leaves
  none. Use as a context manager; only the first process traces.
  """

  def __init__(
    self, workdir: pathlib.Path, *, count: int, first: int, last: int
  ):
    """`first` and `last` are the first and the last step of this start."""
    self._target = workdir / 'profile'
    self._temporary = workdir / '.profile.tmp'
    self._is_first = hosts.is_first()
    count = min(count if self._is_first else 0, last - first + 1)
    start = min(first + _WARMUP, last - count + 1)
    # The step before those that are traced, and the last one of them.
    self._turns = (start - 1, start + count - 1) if count else ()
    self._ahead = first - 1
    self._runs = False

  def __enter__(self):
    if self._is_first:  # left by a killed run
      shutil.rmtree(self._temporary, ignore_errors=True)
    if self.turns_after(self._ahead):
      self.turn()
    return self

  def __exit__(self, *exception):
    if self._runs:
      self._stop()
      shutil.rmtree(self._temporary, ignore_errors=True)

  def turns_after(self, number: int) -> bool:
    """Whether tracing starts or ends after step `number`."""
    return number in self._turns

  def turn(self):
    """Starts or ends tracing; all steps so far must have finished."""
    if not self._runs:
      jax.profiler.start_trace(str(self._temporary))
      self._runs = True
      return
    self._stop()
    for session in self._temporary.glob('plugins/profile/*'):
      target = self._target / 'plugins' / 'profile' / session.name
      target.parent.mkdir(parents=True, exist_ok=True)
      session.rename(target)
    shutil.rmtree(self._temporary)

  def _stop(self):
    jax.profiler.stop_trace()
    self._runs = False
