"""A pool of processes that returns results in the order of its batches.

Workers are fresh processes: forking would copy JAX's threads in the middle of
their work, and `multiprocessing` would import the main program, JAX included,
into each.
"""

import collections
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import loky

from lm import errors


class Pool:
  """Context manager of `count` processes; 0 runs everything in the caller's."""

  def __init__(self, count: int):
    self.count = count
    self._executor = None

  def __enter__(self) -> 'Pool':
    if self.count:
      self._executor = loky.ProcessPoolExecutor(
        self.count, initializer=_end_with, initargs=(os.getpid(),)
      )
    return self

  def __exit__(self, *exception):
    if self._executor:
      # After an error or Ctrl-C no running call is waited for.
      self._executor.shutdown(wait=True, kill_workers=exception[0] is not None)

  def map(
    self, function: Callable[..., Any], batches: Iterable[Any], *rest: Any
  ) -> Iterator[Any]:
    """Yields `function(batch, *rest)` of each batch, in order.

    Only a few batches more than there are processes are read ahead.

    Raises:
      UserError: a process was killed, as the system does when memory runs out.
    """
    if not self._executor:
      for batch in batches:
        yield function(batch, *rest)
      return
    waiting = collections.deque()
    for batch in batches:
      waiting.append(self._submit(function, batch, *rest))
      if len(waiting) > 2 * self.count:
        yield _result(waiting.popleft())
    while waiting:
      yield _result(waiting.popleft())

  def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function` in one of the processes and returns its result."""
    if not self._executor:
      return function(*arguments)
    return _result(self._submit(function, *arguments))

  def _submit(self, function, *arguments):
    try:
      return self._executor.submit(function, *arguments)
    except loky.process_executor.BrokenProcessPool as error:
      raise _killed(error) from error


def cores() -> int:
  """Number of cores that this process may use, by affinity and cgroup."""
  return loky.cpu_count()


def _end_with(parent: int):
  """Has Linux kill this worker when its parent ends, in whatever way."""
  if not sys.platform.startswith('linux'):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:  # It has already ended.
    os._exit(1)


_PR_SET_PDEATHSIG = 1


def _result(future):
  try:
    return future.result()
  except loky.process_executor.BrokenProcessPool as error:
    raise _killed(error) from error


def _killed(error: Exception) -> errors.UserError:
  return errors.UserError(
    'a process that prepares data was killed, perhaps because memory ran out '
    f'({errors.one_line(error)[:160]}); give a lower data.processes'
  )
