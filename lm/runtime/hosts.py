"""Several processes as one run: how they start, agree and end together.

Every process builds its rows of a batch, computes its part of a step and saves
its part of a checkpoint. The first one alone decides what depends on a clock, a
terminal or a folder's content, and alone writes the other files, so all see one
file system. What is agreed here goes through JAX's coordination service and
never through the devices: it can wait for hours, and with a process that hangs.

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

# Seconds in which all processes must have been started.
_START = 300
# Seconds between looks at what others have told.
_SHORTEST, _LONGEST = 0.002, 0.5
# Seconds that a process which fails waits for the others to do the same.
_FAREWELL = 5.0
_LEFT = 'left'
# How MPI tells the number of processes where JAX does not read it.
_MPI_SIZES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
):
  """Makes this process one of several, if flags or a cluster say so.

  To be called before anything asks JAX for devices. Afterwards only the first
  process writes to stdout.

  Args:
    coordinator_address: HOST:PORT at which the first process can be reached;
      None, like the two others: as Slurm, Open MPI or a TPU pod announces it.
    num_processes: of the run.
    process_id: of this process, from 0.

  Raises:
    UserError: only some of them are given, a value is out of range, or the
      coordinator cannot be reached.
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
  """Whether this process decides and writes; the only one does."""
  return _group is None or _group.index == 0


def decide(function: Callable[[], Any]) -> Any:
  """What `function` returns in the first process; it is called only there.

  All processes must call this in the same order, and the others wait for the
  first one as long as it takes.

  Args:
    function: returns what JSON can hold.
  """
  if _group is None:
    return function()
  topic = _group.topic('decision')
  if is_first():
    _group.tell(topic, function())
  return _group.wait(topic, 1)[0]


def exchange(value: Any) -> list[Any]:
  """The values of all processes, in their order; JSON."""
  if _group is None:
    return [value]
  topic = _group.topic('exchange')
  _group.tell(topic, value)
  told = _group.wait(topic, _group.count)
  return [told[process] for process in range(_group.count)]


def attempt(function: Callable[[], Any]) -> Any:
  """Calls `function` in every process; fails in all if it fails in one.

  It must not wait for other processes, one of which may have failed.

  Raises:
    Exception: what `function` raised here, or one that tells what it raised in
      another process.
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

  The first process prints the message on stderr, whoever's it is.
  """
  if _group is None:
    if message:
      print(message, file=sys.stderr)
    sys.exit(code)
  _group.leave(code, message)


def fail(error: Exception):
  """Ends all processes after an error that nobody expected; returns if alone.

  Left to itself a process that fails waits for the others, which wait for it.
  """
  if _group is None:
    return
  text = f'error: {type(error).__name__}: {errors.one_line(error)}'
  _group.leave(1, text, error)


def part():
  """Waits until all processes have come here, and ends what `join` began."""
  global _group
  if _group is None:
    return
  exchange(None)
  _group.close()
  jax.distributed.shutdown()
  _group = None


def group() -> '_Group | None':
  """The processes, for those who must talk beside the main thread."""
  return _group


class _Group:
  """What processes tell one another; all share one folder of topics."""

  def __init__(self):
    self.index, self.count = jax.process_index(), jax.process_count()
    self._client = distributed.global_state.client
    self._numbers = itertools.count()
    self._leaving, self._end = threading.Lock(), threading.Event()
    if self.index:
      # The descriptor, on which libraries in C++ write, too.
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # A daemon: it must not keep a process that has failed.
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()

  def topic(self, name: str) -> str:
    """A new topic, the same in all processes that ask in the same order."""
    return f'{name}-{next(self._numbers)}'

  def tell(self, topic: str, value: Any):
    """Tells a value of this process, once for a topic."""
    key = f'lm/{topic}/{self.index}'
    self._client.key_value_set(key, json.dumps(value))

  def told(self, topic: str) -> dict[int, Any]:
    """What processes have told so far, by their index."""
    entries = self._client.key_value_dir_get(f'lm/{topic}/')
    return {
      int(key.rpartition('/')[2]): json.loads(value) for key, value in entries
    }

  def wait(
    self, topic: str, count: int, timeout: float = float('inf')
  ) -> dict[int, Any]:
    """What `count` processes have told; fewer after `timeout` seconds."""
    pause, deadline = _SHORTEST, time.monotonic() + timeout
    while len(told := self.told(topic)) < count:
      if time.monotonic() > deadline:
        break
      # Not in the client: signals must be handled meanwhile.
      time.sleep(pause)
      pause = min(1.5 * pause, _LONGEST)
    return told

  def leave(
    self, code: int, message: str, error: Exception | None = None
  ) -> NoReturn:
    """See the function of this name, and `fail`."""
    # Never released: the main thread and the watcher may both come here, and
    # when others leave, a step fails here only because they do.
    self._leaving.acquire()
    if error is not None:
      traceback.print_exception(error)
    if not self.index and message:
      print(message, file=sys.stderr)
    try:
      self.tell(_LEFT, [code, message])
      self.wait(_LEFT, self.count, _FAREWELL)
      if not self.index:
        # It holds the service, without which JAX aborts the others noisily.
        time.sleep(2 * _LONGEST)
    except jax.errors.JaxRuntimeError:
      pass  # the first process is gone
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      # Not sys.exit: JAX would wait there for the others, too.
      os._exit(code)

  def close(self):
    """Ends the watcher."""
    self._end.set()
    self._watcher.join()

  def _watch(self):
    """Leaves when another process has left, even out of a step that hangs."""
    try:
      while not self._end.wait(_LONGEST):
        if not self.told(_LEFT):
          continue
        # Most mistakes are found by all; the main thread then tells its own.
        if self._end.wait(2 * _LONGEST):
          return
        process, (code, message) = min(self.told(_LEFT).items())
        where = f' (process {process})' if message else ''
        self.leave(code, f'{message}{where}')
    except jax.errors.JaxRuntimeError:
      return  # without the first process, JAX ends this one


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

  Of the clusters that JAX knows, Kubernetes is left out: every pod there looks
  like one.
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
    except OSError:  # a TPU outside of the cloud: nobody answers
      continue
  # Open MPI since version 5, and MPICH.
  if any(_size(name) > 1 for name in _MPI_SIZES):
    if importlib.util.find_spec('mpi4py'):
      return {'cluster_detection_method': 'mpi4py'}
    raise errors.UserError(
      'this MPI starts several processes and does not tell where the first one '
      'is; install mpi4py, or give --coordinator_address, --num_processes and '
      '--process_id'
    )
  return None


def _size(name: str) -> int:
  """Processes by a variable of the environment; 1 where it is not set."""
  value = os.environ.get(name) or '1'
  if not value.isdecimal():
    raise errors.UserError(
      f"the environment's {name}='{value}' is no number of processes; unset "
      'it, or give --coordinator_address, --num_processes and --process_id'
    )
  return int(value)


def _check_port(address: str):
  """JAX crashes where it cannot listen."""
  port = address.rpartition(':')[2]
  try:
    socket.create_server(('', int(port))).close()
  except OSError as error:
    raise errors.UserError(
      f'--coordinator_address={address}: port {port} cannot be used here '
      f'({errors.one_line(error)}); give a free port of the host of process 0'
    ) from None


def _wait_for_port(address: str):
  """Returns when the first process listens.

  JAX aborts with a stack trace where it cannot be reached.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + _START
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
      return
    except OSError as error:
      # Also where no such host is known: its name may come with it.
      if time.monotonic() > deadline:
        raise errors.UserError(
          f'--coordinator_address={address} cannot be reached '
          f'({errors.one_line(error)}); give the host of process 0 and a free '
          'port there, and start all processes'
        ) from None
    time.sleep(_LONGEST)


def _initialize(**arguments):
  # Its handler of SIGTERM would take the place of ours.
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
