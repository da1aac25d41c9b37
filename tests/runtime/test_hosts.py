"""Two real processes are one run; another number of them goes on with it.

Each has two CPU devices. Parameters are split over the processes, so that each
saves and restores its own half, and heads over the devices of a process.
"""

import os
import pathlib
import shutil
import signal
import socket
import time

import pytest
from helpers import runs

from lm import errors
from lm.runtime import hosts

STEPS = 20
FLAGS = (
  '--config.mesh.fsdp=2',
  '--config.mesh.tensor=2',
  f'--config.train.steps={STEPS}',
  '--config.train.checkpoint_every=6',
)


class Pair:
  """A run of two processes on this machine."""

  def __init__(self, launcher: runs.Launcher, workdir, *flags, hold_at=None):
    address = f'localhost:{_free_port()}'
    self.workdir = workdir
    self.processes = [
      launcher.start(
        workdir,
        *FLAGS,
        *flags,
        f'--coordinator_address={address}',
        '--num_processes=2',
        f'--process_id={process}',
        hold_at=hold_at,
        process=process,
        devices=2,
      )
      for process in range(2)
    ]

  def wait_until_held(self):
    for number, process in enumerate(self.processes):
      runs.wait_until_held(process, self.workdir, number)

  def release(self):
    for number in range(2):
      runs.held(self.workdir, number).unlink()

  def finish(self) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
      return [runs.finish(process) for process in self.processes]
    except BaseException:
      self.kill()
      raise

  def kill(self) -> list[tuple[int, str, str]]:
    """kill -9 of both, the second before the first, which would end it."""
    for process in reversed(self.processes):
      process.kill()
    return [runs.finish(process) for process in self.processes]


def _free_port() -> int:
  with socket.create_server(('', 0)) as free:
    return free.getsockname()[1]


@pytest.fixture(scope='module')
def launcher(tmp_path_factory, corpus, compilation_cache) -> runs.Launcher:
  folder = tmp_path_factory.mktemp('experiment')
  # A mixture: each source has figures of its own.
  sources = ((f'{corpus}/[01]*.txt', 1.0), (f'{corpus}/[23]*.txt', 2.0))
  launcher = runs.Launcher.write(
    folder, corpus, compilation_cache, sources=sources
  )
  # All but the first process compile everything in each run.
  launcher.environment['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  return launcher


@pytest.fixture(scope='module')
def two(launcher, tmp_path_factory) -> pathlib.Path:
  """The folder of two processes that were never stopped."""
  workdir = tmp_path_factory.mktemp('runs') / 'two'
  (code, out, err), second = Pair(launcher, workdir).finish()
  assert (code, err) == (0, ''), out
  # Only the first one writes.
  assert second == (0, '', '')
  assert f'report: {workdir / "report.html"}' in out
  return workdir


def _assert_same_run(workdir: pathlib.Path, other: pathlib.Path):
  assert runs.lines(workdir) == runs.lines(other)
  runs.assert_same_state(runs.final_state(workdir), runs.final_state(other))


def _assert_same_batches(workdir: pathlib.Path, other: pathlib.Path):
  """Equal counts of what was read, and losses equal but for rounding."""
  lines, others = runs.lines(workdir), runs.lines(other)
  assert len(lines) == len(others) > 8
  for line, expected in zip(lines, others, strict=True):
    assert line.keys() == expected.keys()
    for name, value in line.items():
      if name in ('step', 'split', 'tokens', 'loss_tokens', 'epochs'):
        assert value == expected[name], (line, name)
      elif isinstance(value, float):
        assert value == pytest.approx(expected[name], rel=1e-3), (line, name)
  for source, part in lines[-1]['by_source'].items():
    expected = others[-1]['by_source'][source]
    assert part == pytest.approx(expected, rel=1e-3), source
    assert part['bits_per_byte'] > 0


def test_one_process_reads_the_same_batches(launcher, two, tmp_path):
  workdir = tmp_path / 'one'
  code, out, err = runs.finish(launcher.start(workdir, *FLAGS, devices=4))
  assert (code, err) == (0, ''), out
  _assert_same_batches(workdir, two)


def test_stopped_damaged_and_killed(launcher, two, tmp_path):
  workdir, alone = tmp_path / 'two', tmp_path / 'one'

  # A signal to one process: both save and stop after the same step.
  pair = Pair(launcher, workdir, hold_at=9)
  pair.wait_until_held()
  pair.processes[1].send_signal(signal.SIGTERM)
  for number, process in enumerate(pair.processes):
    runs.wait_until(process, runs.agreed(workdir, number).exists)
  pair.release()
  first, second = pair.finish()
  assert first[0] == 128 + signal.SIGTERM, first
  assert second == (128 + signal.SIGTERM, '', '')
  before, saved = runs.saved(workdir)
  assert 10 <= saved < STEPS
  assert f'stopped by SIGTERM after step {saved} of {STEPS}' in first[2]

  # One process alone goes on with it.
  shutil.copytree(workdir, alone)
  code, out, err = runs.finish(launcher.start(alone, *FLAGS, devices=4))
  assert (code, err) == (0, '')
  assert f'continuing after step {saved}' in out
  _assert_same_batches(alone, two)

  # Damage that only the second can see: both take the checkpoint before.
  state = workdir / 'checkpoints' / str(saved) / 'state'
  halves = (state / 'ocdbt.process_1' / 'd').iterdir()
  largest = max(halves, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  pair = Pair(launcher, workdir, hold_at=saved + 3)
  pair.wait_until_held()
  (_, out, err), second = pair.kill()
  assert f'continuing after step {before}' in out
  assert f'checkpoint {saved} is damaged' in err
  assert second == (-signal.SIGKILL, '', '')
  assert (workdir / 'damaged' / str(saved)).is_dir()

  # That was kill -9 of both.
  last = runs.saved(workdir)[-1]
  (code, out, err), second = Pair(launcher, workdir).finish()
  assert (code, err) == (0, '')
  assert f'continuing after step {last}' in out
  assert second == (0, '', '')
  _assert_same_run(workdir, two)


def test_a_process_does_not_wait_for_a_dead_one(launcher, tmp_path):
  workdir = tmp_path / 'alone'
  pair = Pair(launcher, workdir, hold_at=3)
  pair.wait_until_held()
  runs.kill(pair.processes[1])
  pair.release()
  began = time.monotonic()
  code, _, err = runs.finish(pair.processes[0])
  assert code == 1, err
  assert err.splitlines()[-1].startswith('error: ')
  # Less than the coordination service's own patience of 100 s.
  assert time.monotonic() - began < 90


def test_a_mistake_ends_both_with_one_line(launcher, tmp_path):
  workdir = tmp_path / 'mistaken'
  pair = Pair(
    launcher,
    workdir,
    '--config.data.path=/no/such',
    '--config.data.sources=()',
    f'--config.data.directory={tmp_path / "prepared"}',
  )
  (code, _, err), second = pair.finish()
  assert code == 2
  assert err.startswith("error: data.path='/no/such' does not exist")
  assert err.count('\n') == 1
  assert second == (2, '', '')
  assert not workdir.exists()


@pytest.fixture
def started(monkeypatch) -> list[dict]:
  """What `initialize` is called with, instead of being called."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'PMI_', 'TPU_', 'MEGASCALE_')):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(hosts, '_initialize', lambda **x: calls.append(x))
  monkeypatch.setattr(hosts, '_Group', lambda: None)
  return calls


def test_alone_nothing_is_started(started):
  hosts.join()
  hosts.join('localhost:1234', 1, 0)
  assert started == []
  assert hosts.is_first()
  assert hosts.decide(lambda: (1, 2)) == (1, 2)
  assert hosts.exchange('a') == ['a']
  with pytest.raises(KeyError):
    hosts.attempt(lambda: {}['b'])


def test_flags_say_how_to_start(started):
  port = _free_port()
  hosts.join(f'node1:{port}', 2, 0)
  (call,) = started
  assert call['coordinator_address'] == f'node1:{port}'
  assert (call['num_processes'], call['process_id']) == (2, 0)
  # No question to a cluster or a cloud.
  assert call['cluster_detection_method'] == 'deactivate'


_SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}
_ORTE = 'OMPI_MCA_orte_hnp_uri'


@pytest.mark.parametrize(
  ('environment', 'calls'),
  [
    ({**_SLURM, 'SLURM_NTASKS': '2'}, [{}]),
    ({**_SLURM, 'SLURM_NTASKS': '1'}, []),
    # In an allocation, but not in a step of it.
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'}, []),
    ({_ORTE: '4096.0;tcp://10.0.0.1:5', 'OMPI_COMM_WORLD_SIZE': '2'}, [{}]),
    ({_ORTE: '4096.0;tcp://10.0.0.1:5', 'OMPI_COMM_WORLD_SIZE': '1'}, []),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, []),
    ({'PMI_SIZE': ''}, []),
    # A machine with the variables of a TPU pod that is none.
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0'}, []),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, []),
  ],
)
def test_clusters_announce_themselves(started, monkeypatch, environment, calls):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  hosts.join()
  assert started == calls


def test_a_tpu_pod_announces_itself(started, monkeypatch):
  cluster = 'jax._src.clusters.cloud_tpu_cluster'
  monkeypatch.setattr(f'{cluster}.running_in_cloud_tpu_vm', True)
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', '1')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a')
  hosts.join()
  assert started == []
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b')
  hosts.join()
  assert started == [{}]


def test_a_size_that_is_no_number_is_named(started, monkeypatch):
  monkeypatch.setenv('PMI_SIZE', 'two')
  with pytest.raises(errors.UserError, match="PMI_SIZE='two' is no number"):
    hosts.join()
  assert started == []


def test_an_mpi_without_a_coordinator_needs_mpi4py(started, monkeypatch):
  monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
  found = [None, 'a module']
  monkeypatch.setattr('importlib.util.find_spec', lambda name: found.pop(0))
  with pytest.raises(errors.UserError, match='install mpi4py'):
    hosts.join()
  hosts.join()
  assert started == [{'cluster_detection_method': 'mpi4py'}]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('node1:1234', None, None), 'without --num_processes, --process_id'),
    ((None, 2, None), 'without --coordinator_address, --process_id'),
    (('node1', 2, 0), 'coordinator_address=node1 is not HOST:PORT'),
    ((':1234', 2, 0), 'is not HOST:PORT'),
    (('node1:65536', 2, 0), 'is not HOST:PORT'),
    (('node1:1234', 0, 0), '--num_processes=0 is out of range'),
    (('node1:1234', 2, 2), '--process_id=2 is out of range: give 0 to 1'),
    (('node1:1234', 2, -1), '--process_id=-1 is out of range'),
    (('no-such-host.invalid:1234', 2, 1), 'cannot be reached'),
  ],
)
def test_flags_that_do_not_fit_are_an_error(
  started, monkeypatch, flags, message
):
  monkeypatch.setattr(hosts, '_START', 0)
  with pytest.raises(errors.UserError, match=message) as caught:
    hosts.join(*flags)
  assert '\n' not in str(caught.value)
  assert started == []


def test_a_host_may_get_its_name_while_others_wait_for_it(monkeypatch):
  answers = [socket.gaierror(-2, 'unknown'), ConnectionRefusedError()]

  class Connection:
    def close(self):
      answers.append('closed')

  def connect(*arguments):
    if answers:
      raise answers.pop(0)
    return Connection()

  monkeypatch.setattr(hosts, '_LONGEST', 0.0)
  monkeypatch.setattr('socket.create_connection', connect)
  hosts._wait_for_port('node1:1234')
  assert answers == ['closed']


def test_a_port_that_is_taken_is_an_error(started):
  with socket.create_server(('', 0)) as taken:
    address = f'localhost:{taken.getsockname()[1]}'
    with pytest.raises(errors.UserError, match='cannot be used here') as caught:
      hosts.join(address, 2, 0)
  assert '\n' not in str(caught.value)
  assert started == []


def test_processes_that_cannot_meet_are_one_line(monkeypatch):
  def fails(**arguments):
    raise RuntimeError('UNKNOWN: Failed to start\nRPC server')

  monkeypatch.setattr('jax.distributed.initialize', fails)
  with pytest.raises(errors.UserError, match='cannot meet') as caught:
    hosts.join(f'localhost:{_free_port()}', 2, 0)
  assert 'Failed to start RPC server' in str(caught.value)
  assert '\n' not in str(caught.value)
