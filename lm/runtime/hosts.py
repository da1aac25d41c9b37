"""Several processes as one run: how they start, agree and end together.

Every process builds its rows of a batch, computes its part of a step and saves
its part of a checkpoint. The first process alone decides what depends on a
clock, a terminal or a folder's content, and alone writes the other files, so
all must see one file system.

Values are exchanged through JAX's coordination service and never through the
devices. `broadcast_one_to_all` and `process_allgather` of
`jax.experimental.multihost_utils` run a compiled collective instead: the
processes that arrive first wait inside XLA, where no Python signal handler runs
(a SIGTERM is handled once the last process arrives), and arrays must have one
shape in all processes, which texts and errors do not. One process may prepare
data for hours, or fail, while the others wait: here they poll, so they handle
signals and see who has left.

Without `join` there is one process, and everything here costs nothing.
"""

import importlib.util
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed

from lm import errors

# Seconds within which all processes must start.
_START = 300
# Seconds between polls of the coordination service: at first, and at most.
_SHORTEST, _LONGEST = 0.002, 0.5
# Seconds that a failing process waits for the others to leave as well.
_FAREWELL = 5.0
_LEFT = 'left'
# Number of processes, set by MPI implementations that JAX does not detect.
_MPI_SIZES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
):
  """Connects this process to the others, if flags or a cluster announce any.

  Must be called before anything asks JAX for devices. Afterwards only the first
  process writes to stdout.

  Args:
    coordinator_address: HOST:PORT at which the first process can be reached.
      All three arguments None: what Slurm, Open MPI or a TPU pod announces.
    num_processes: number of processes of the run.
    process_id: index of this process, from 0.

  Raises:
    UserError: only some of the arguments are given, a value is out of range, or
      the coordinator cannot be reached.
  """
  global _group
  flags = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  given = [name for name, value in flags.items() if value is not None]
  if given and len(given) < len(flags):
    missing = ', '.join(name for name in flags if name not in given)
    raise errors.UserError(
      f'{", ".join(given)} without {missing}: give all three, or none where '
      'Slurm, Open MPI or a TPU pod announces them'
    )
  if given:
    _check(coordinator_address, num_processes, process_id)
    if num_processes > 1:
      if process_id:
        _wait_for_port(coordinator_address)
      else:
        _check_port(coordinator_address)
      _initialize(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
        cluster_detection_method='deactivate',
      )
      _group = _Group()
  elif (announced := _announced()) is not None:
    _initialize(**announced)
    _group = _Group()


def is_first() -> bool:
  """Whether this process decides and writes; True without other processes."""
  return _group is None or _group.index == 0


def decide(function: Callable[[], Any]) -> Any:
  """Returns the first process's `function()`, which the others do not call.

  All processes must call this in the same order; the others wait for the first
  one, however long it takes.

  Args:
    function: returns a JSON value.
  """
  if _group is None:
    return function()
  topic = _group.topic('decision')
  if is_first():
    _group.publish(topic, function())
  return _group.wait(topic, 1)[0]


def exchange(value: Any) -> list[Any]:
  """Returns the JSON values of all processes, in the processes' order."""
  if _group is None:
    return [value]
  topic = _group.topic('exchange')
  _group.publish(topic, value)
  values = _group.wait(topic, _group.count)
  return [values[process] for process in range(_group.count)]


def attempt(function: Callable[[], Any]) -> Any:
  """Calls `function` in every process; fails in all if it fails in one.

  The function must not wait for other processes, one of which may have failed.

  Raises:
    Exception: what `function` raised here.
    RuntimeError: it raised in another process, which the message names.
  """
  if _group is None:
    return function()
  value, error = None, None
  try:
    value = function()
  except Exception as caught:
    error = caught
  text = error and f'{type(error).__name__}: {errors.one_line(error)}'
  problems = exchange(text)
  if error is not None:
    raise error
  for process, problem in enumerate(problems):
    if problem is not None:
      raise RuntimeError(f'process {process}: {problem}')
  return value


def leave(code: int, message: str = '') -> NoReturn:
  """Ends this process and all others with an exit code.

  The first process prints the message on stderr, whichever process leaves.
  """
  if _group is None:
    if message:
      print(message, file=sys.stderr)
    sys.exit(code)
  _group.leave(code, message)


def fail(error: Exception):
  """Ends all processes after an unexpected error; returns if there is one.

  Otherwise JAX would wait, on exit, for the other processes, and they for this.
  """
  if _group is None:
    return
  text = f'error: {type(error).__name__}: {errors.one_line(error)}'
  _group.leave(1, text, error)


def disconnect():
  """Waits for all processes to call this, and disconnects them."""
  global _group
  if _group is None:
    return
  exchange(None)
  _group.close()
  jax.distributed.shutdown()
  _group = None


def group() -> '_Group | None':
  """The connection, for use outside of the main thread; None without one."""
  return _group


class _Group:
  """A connection to the other processes: values published under topics."""

  def __init__(self):
    self.index, self.count = jax.process_index(), jax.process_count()
    self._client = distributed.global_state.client
    self._numbers = itertools.count()
    self._leaving, self._end = threading.Lock(), threading.Event()
    if self.index:
      # The descriptor, since libraries in C++ write to it as well.
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # A daemon, so that it does not keep a failed process alive.
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()

  def topic(self, name: str) -> str:
    """A new topic, the same in all processes that ask in the same order."""
    return f'{name}-{next(self._numbers)}'

  def publish(self, topic: str, value: Any):
    """Publishes this process's JSON value; at most once for each topic."""
    key = f'lm/{topic}/{self.index}'
    self._client.key_value_set(key, json.dumps(value))

  def published(self, topic: str) -> dict[int, Any]:
    """The values published so far, by the process's index."""
    entries = self._client.key_value_dir_get(f'lm/{topic}/')
    return {
      int(key.rpartition('/')[2]): json.loads(value) for key, value in entries
    }

  def wait(
    self, topic: str, count: int, timeout: float = float('inf')
  ) -> dict[int, Any]:
    """Waits for the values of `count` processes, or for `timeout` seconds."""
    pause, deadline = _SHORTEST, time.monotonic() + timeout
    while len(values := self.published(topic)) < count:
      if time.monotonic() > deadline:
        break
      # The client's own waiting call would hold back signal handlers.
      time.sleep(pause)
      pause = min(1.5 * pause, _LONGEST)
    return values

  def leave(
    self, code: int, message: str, error: Exception | None = None
  ) -> NoReturn:
    """See the functions `leave` and `fail`."""
    # Never released: the main thread and the watcher may both get here, and
    # once others leave, a step here fails for that reason alone.
    self._leaving.acquire()
    if error is not None:
      traceback.print_exception(error)
    if not self.index and message:
      print(message, file=sys.stderr)
    try:
      self.publish(_LEFT, [code, message])
      self.wait(_LEFT, self.count, _FAREWELL)
      if not self.index:
        # This process runs the service; without it JAX aborts the others with
        # a stack trace.
        time.sleep(2 * _LONGEST)
    except jax.errors.JaxRuntimeError:
      pass  # the first process is gone
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      # sys.exit would let JAX wait for the others.
      os._exit(code)

  def close(self):
    """Stops the watcher."""
    self._end.set()
    self._watcher.join()

  def _watch(self):
    """Leaves when another process has left, even if a step hangs here."""
    try:
      while not self._end.wait(_LONGEST):
        if not self.published(_LEFT):
          continue
        # All processes find most mistakes: the main thread may be leaving.
        if self._end.wait(2 * _LONGEST):
          return
        process, (code, message) = min(self.published(_LEFT).items())
        where = f' (process {process})' if message else ''
        self.leave(code, f'{message}{where}')
    except jax.errors.JaxRuntimeError:
      return  # the first process is gone, and JAX ends this one


_group: _Group | None = None


def _check(address: str, count: int, index: int):
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise errors.UserError(
      f'--coordinator_address={address} is not HOST:PORT, for instance '
      'node1:1234; give the host of process 0 and a free port there'
    )
  if count < 1:
    raise errors.UserError(
      f'--num_processes={count} is out of range: give at least 1'
    )
  if not 0 <= index < count:
    raise errors.UserError(
      f'--process_id={index} is out of range: give 0 to {count - 1}, below '
      f'--num_processes={count}'
    )


def _announced() -> dict[str, Any] | None:
  """Arguments of `initialize` on a cluster with several processes, else None.

  Of the clusters that JAX detects, Kubernetes is left out: its test holds in
  every pod.
  """
  known = (
    clusters.OmpiCluster,
    clusters.SlurmCluster,
    clusters.GkeTpuCluster,
    clusters.GceTpuCluster,
  )
  for cluster in known:
    try:
      if cluster.is_env_present():
        return {} if cluster.get_process_count() > 1 else None
    except OSError:  # a TPU outside of the cloud, with no metadata server
      continue
  # Open MPI since version 5, and MPICH.
  if any(_size(name) > 1 for name in _MPI_SIZES):
    if importlib.util.find_spec('mpi4py'):
      return {'cluster_detection_method': 'mpi4py'}
    raise errors.UserError(
      'this MPI starts several processes and does not say where the first one '
      'is; install mpi4py, or give --coordinator_address, --num_processes and '
      '--process_id'
    )
  return None


def _size(name: str) -> int:
  """Number of processes from an environment variable; 1 where it is not set."""
  value = os.environ.get(name) or '1'
  if not value.isdecimal():
    raise errors.UserError(
      f"the environment's {name}='{value}' is no number of processes; unset "
      'it, or give --coordinator_address, --num_processes and --process_id'
    )
  return int(value)


def _check_port(address: str):
  """Raises UserError if the port is taken, where JAX would crash."""
  port = address.rpartition(':')[2]
  try:
    socket.create_server(('', int(port))).close()
  except OSError as error:
    raise errors.UserError(
      f'--coordinator_address={address}: port {port} cannot be used here '
      f'({errors.one_line(error)}); give a free port of the host of process 0'
    ) from None


def _wait_for_port(address: str):
  """Waits until the first process listens.

  Raises:
    UserError: it does not within `_START` seconds, where JAX would abort with a
      stack trace.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + _START
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
      return
    except OSError as error:
      # Unknown hosts included: a name may appear when its host starts.
      if time.monotonic() > deadline:
        raise errors.UserError(
          f'--coordinator_address={address} cannot be reached '
          f'({errors.one_line(error)}); give the host of process 0 and a free '
          'port there, and start all processes'
        ) from None
    time.sleep(_LONGEST)


def _initialize(**arguments):
  # Its handler of SIGTERM would swallow the signal until ours is installed, and
  # in modes that install none; see `signals.py`.
  jax.config.update('jax_enable_preemption_service', False)
  text = f'still waiting for all processes of this run, up to {_START} s'
  note = threading.Timer(10, print, [text], {'file': sys.stderr})
  note.daemon = True
  note.start()
  try:
    jax.distributed.initialize(**arguments, initialization_timeout=_START)
  except (RuntimeError, ValueError, OSError) as error:
    raise errors.UserError(
      f'the processes of this run cannot meet ({errors.one_line(error)}); give '
      '--coordinator_address=HOST:PORT with the host of process 0 and a free '
      'port there, --num_processes and --process_id'
    ) from None
  finally:
    note.cancel()
