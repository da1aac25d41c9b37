"""Two real processes are one run; another number of them can go on with it."""

import pathlib
import signal
import socket
import time

import jax
import ml_collections
import numpy as np
import pytest
import runs

from lm import (
  checkpoint,
  config as config_lib,
  models,
  objectives,
  optimizer,
  sharding,
  step,
)

STEPS = 20
# Parameters are split over hosts, and heads over the devices of a host.
FLAGS = (
  '--config.mesh.fsdp=2',
  '--config.mesh.tensor=2',
  f'--config.train.steps={STEPS}',
  '--config.train.checkpoint_every=6',
)


class Pair:
  """Two processes of two devices each, on this machine."""

  def __init__(self, launcher: runs.Launcher, workdir, *flags, hold_at=None):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.workdir = workdir
    self.processes = [
      launcher.start(
        workdir,
        *FLAGS,
        *flags,
        f'--coordinator_address=localhost:{port}',
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
    finally:
      self.kill()

  def kill(self):
    for process in self.processes:
      process.kill()
      process.communicate()


@pytest.fixture(scope='module')
def launcher(tmp_path_factory, corpus, compilation_cache) -> runs.Launcher:
  folder = tmp_path_factory.mktemp('experiment')
  return runs.Launcher.write(folder, corpus, compilation_cache)


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


@pytest.fixture(scope='module')
def one(launcher, tmp_path_factory) -> pathlib.Path:
  """The same run, of one process with as many devices."""
  workdir = tmp_path_factory.mktemp('runs') / 'one'
  code, out, err = runs.finish(launcher.start(workdir, *FLAGS, devices=4))
  assert (code, err) == (0, ''), out
  return workdir


def _state(workdir: pathlib.Path) -> step.TrainState:
  config = ml_collections.ConfigDict(config_lib.load(workdir))
  config.mesh.update({'fsdp': 1, 'tensor': 1})
  model = models.make(config, objectives.make(config).attention)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  abstract = step.abstract_state(model, optimizer.make(config), mesh)
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    return checkpoints.restore_latest(abstract)[0]
  finally:
    checkpoints.close()


def _assert_same_run(workdir: pathlib.Path, other: pathlib.Path):
  assert runs.lines(workdir) == runs.lines(other)
  leaves, others = (jax.tree.leaves(_state(x)) for x in (workdir, other))
  assert len(leaves) == len(others) > 20
  for leaf, expected in zip(leaves, others, strict=True):
    assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()


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


def test_one_process_and_two_read_the_same_batches(one, two):
  _assert_same_batches(two, one)


def test_killed_processes_go_on_bit_identically(launcher, two, tmp_path):
  workdir = tmp_path / 'killed'
  pair = Pair(launcher, workdir, hold_at=15)
  pair.wait_until_held()
  pair.kill()
  assert runs.saved(workdir) == [6, 12]
  for (code, out, err), expected in zip(
    Pair(launcher, workdir).finish(),
    ['going on after step 12', ''],
    strict=True,
  ):
    assert (code, err) == (0, '')
    assert expected in out
  _assert_same_run(workdir, two)


def test_a_signal_to_one_stops_both_and_one_goes_on(launcher, two, tmp_path):
  workdir = tmp_path / 'stopped'
  pair = Pair(launcher, workdir, hold_at=9)
  pair.wait_until_held()
  pair.processes[1].send_signal(signal.SIGTERM)
  pair.release()
  first, second = pair.finish()
  assert first[0] == second[0] == 128 + signal.SIGTERM, (first, second)
  saved = runs.saved(workdir)[-1]
  assert 10 <= saved < STEPS
  assert saved % 6
  assert f'stopped by SIGTERM after step {saved} of {STEPS}' in first[2]
  assert second[2] == ''

  process = launcher.start(workdir, *FLAGS, devices=4)
  code, out, err = runs.finish(process)
  assert (code, err) == (0, '')
  assert f'going on after step {saved}' in out
  _assert_same_batches(workdir, two)


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
  assert time.monotonic() - began < 60


def test_a_mistake_ends_both_with_one_line(launcher, tmp_path):
  workdir = tmp_path / 'mistaken'
  prepared = tmp_path / 'prepared'
  pair = Pair(
    launcher,
    workdir,
    '--config.data.path=/no/such',
    f'--config.data.directory={prepared}',
  )
  (code, _, err), second = pair.finish()
  assert code == 2
  assert err.startswith("error: data.path='/no/such' does not exist")
  assert err.count('\n') == 1
  assert second == (2, '', '')
  assert not workdir.exists()
