"""A run that was stopped is, when it ends, the run that never was."""

import math
import pathlib
import shutil
import signal

import pytest
from helpers import runs

from lm.config import resolve as config_lib
from lm.training import metrics

STEPS = 40


@pytest.fixture(scope='module')
def launcher(
  tmp_path_factory, corpus, compilation_cache, run_command
) -> runs.Launcher:
  folder = tmp_path_factory.mktemp('experiment')
  return runs.Launcher.write(
    folder, corpus, compilation_cache, command=run_command
  )


@pytest.fixture(scope='module')
def never_stopped(launcher, tmp_path_factory) -> pathlib.Path:
  """The folder of a run from start to end; tests must not change it."""
  workdir = tmp_path_factory.mktemp('runs') / 'never_stopped'
  code, out, err = launcher.run(workdir)
  assert (code, err) == (0, ''), out
  return workdir


def _assert_same_run(workdir: pathlib.Path, other: pathlib.Path):
  """Bit-identical states; the same lines; the same samples."""
  assert runs.lines(workdir) == runs.lines(other)
  samples = [
    path.read_bytes() if path.exists() else None
    for path in (workdir / 'samples.txt', other / 'samples.txt')
  ]
  assert samples[0] == samples[1]
  assert runs.saved(workdir)[-1] == runs.saved(other)[-1]
  runs.assert_same_state(runs.final_state(workdir), runs.final_state(other))


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def test_every_boundary_is_logged_once(never_stopped):
  every = {1, STEPS, *range(3, STEPS, 3)}
  assert runs.steps(never_stopped, 'train') == sorted(every)
  assert runs.steps(never_stopped, 'validation') == [8, 16, 24, 32, 40]
  assert runs.steps(never_stopped, 'test') == [STEPS]
  last = metrics.read(never_stopped)[-1]
  assert (last['step'], last['split']) == (STEPS, 'final')


def test_killed_runs_go_on_bit_identically(launcher, never_stopped, tmp_path):
  workdir = tmp_path / 'killed'

  # Between checkpoints, with lines behind the last one, the last of them half.
  process = launcher.start(workdir, hold_at=20)
  runs.wait_until_held(process, workdir)
  runs.wait_until(process, lambda: runs.steps(workdir, 'train')[-1:] == [18])
  # It is saved while training goes on.
  runs.wait_until(process, lambda: runs.saved(workdir) == [12])
  runs.kill(process)
  assert runs.steps(workdir, 'validation') == [8, 16]
  with open(workdir / 'metrics.jsonl', 'ab') as f:
    f.write(b'{"step": 21, "split": "tra')
  runs.held(workdir).unlink()

  # While it runs.
  process = launcher.start(workdir)
  runs.wait_until(process, lambda: runs.steps(workdir, 'train')[-1] >= 27)
  _, out, _ = runs.kill(process)
  assert 'continuing after step 12' in out
  written = runs.steps(workdir, 'train')
  assert written == sorted(set(written))
  assert STEPS not in written
  # Step 24 may have been in the middle of its save.
  last = runs.saved(workdir)[-1]
  assert last in (12, 24)

  # In the final evaluation.
  process = launcher.start(workdir)
  runs.wait_until(process, lambda: runs.steps(workdir, 'test') == [STEPS])
  _, out, _ = runs.kill(process)
  assert f'continuing after step {last}' in out
  assert runs.steps(workdir, 'final') == []

  code, out, err = launcher.run(workdir)
  assert (code, err) == (0, '')
  assert f'continuing after step {STEPS}' in out
  _assert_same_run(workdir, never_stopped)


def test_a_killed_encoder_decoder_goes_on_bit_identically(launcher, tmp_path):
  """Spans behind sentinels, of which a row of either side holds several."""
  flags = (
    '--config.objective.name=span',
    '--config.train.steps=16',
    # Compiled for long; the other tests have samples.
    '--config.generate.samples=0',
    # The last windows of bytes take hundreds of queries.
    '--config.evaluate.windows=1',
  )
  workdir, whole = tmp_path / 'killed', tmp_path / 'never_stopped'
  process = launcher.start(workdir, *flags, hold_at=14)
  runs.wait_until_held(process, workdir)
  runs.wait_until(process, lambda: runs.saved(workdir) == [12])
  runs.kill(process)
  runs.held(workdir).unlink()
  for folder, begun in ((workdir, True), (whole, False)):
    code, out, err = launcher.run(folder, *flags)
    assert (code, err) == (0, '')
    assert ('continuing after step 12' in out) == begun
  _assert_same_run(workdir, whole)


def test_killed_before_the_first_checkpoint_starts_anew(
  launcher, never_stopped, tmp_path
):
  workdir = tmp_path / 'killed'
  process = launcher.start(workdir, hold_at=10)
  runs.wait_until_held(process, workdir)
  runs.kill(process)
  assert runs.saved(workdir) == []
  assert runs.steps(workdir, 'train')
  runs.held(workdir).unlink()
  code, out, err = launcher.run(workdir)
  assert (code, err) == (0, '')
  assert 'continuing' not in out
  _assert_same_run(workdir, never_stopped)


def test_signals_save_and_leave(launcher, never_stopped, tmp_path):
  workdir = tmp_path / 'stopped'
  # After steps at which nothing is logged, evaluated or saved.
  for number, hold_at in ((signal.SIGTERM, 9), (signal.SIGINT, 25)):
    process = launcher.start(workdir, hold_at=hold_at)
    runs.wait_until_held(process, workdir)
    process.send_signal(number)
    runs.held(workdir).unlink()
    code, _, err = runs.finish(process)
    assert code == 128 + number
    assert f'stopped by {number.name} after step {hold_at + 1}' in err
    assert 'saved; run the same command' in err
    assert 'Traceback' not in err
    assert runs.saved(workdir)[-1] == hold_at + 1
  code, out, err = launcher.run(workdir)
  assert (code, err) == (0, '')
  assert 'continuing after step 26' in out
  _assert_same_run(workdir, never_stopped)


def test_a_finished_run_says_so_and_changes_nothing(launcher, never_stopped):
  before = _contents(never_stopped)
  code, out, err = launcher.run(never_stopped)
  assert (code, err) == (0, '')
  assert f'is finished: {STEPS} steps' in out
  assert f'--config.train.steps={2 * STEPS}' in out
  assert 'another --workdir' in out
  assert _contents(never_stopped) == before


def test_a_finished_run_goes_on_with_a_larger_budget(
  launcher, never_stopped, tmp_path
):
  workdir = tmp_path / 'longer'
  shutil.copytree(never_stopped, workdir)
  code, out, err = launcher.run(workdir, f'--config.train.steps={2 * STEPS}')
  assert (code, err) == (0, '')
  assert f'continuing after step {STEPS}' in out

  every = {1, STEPS, 2 * STEPS, *range(3, 2 * STEPS, 3)}
  assert runs.steps(workdir, 'train') == sorted(every)
  assert runs.steps(workdir, 'validation') == list(range(8, 2 * STEPS + 1, 8))
  assert runs.steps(workdir, 'test') == [2 * STEPS]
  assert runs.steps(workdir, 'final') == [2 * STEPS]
  samples = (workdir / 'samples.txt').read_text('utf-8')
  assert samples.count('=== step') == 1
  assert f'=== step {2 * STEPS}, sample 1' in samples

  old = runs.lines(never_stopped)
  new = runs.lines(workdir)
  assert new[: len(old) - 2] == old[:-2]  # all but `test` and `final`
  config = config_lib.load(workdir)
  assert config['train']['steps'] == 2 * STEPS
  assert config['optimizer']['schedule_steps'] == STEPS
  final_rate = (
    config['optimizer']['learning_rate'] * config['optimizer']['final_fraction']
  )
  rates = [
    line['learning_rate']
    for line in new
    if line['split'] == 'train' and line['step'] > STEPS
  ]
  assert rates == pytest.approx([final_rate] * len(rates), rel=1e-6)
  train = [line for line in new if line['split'] == 'train']
  assert train[-1]['positions'] == 2 * STEPS * 4 * 32


def test_another_config_is_an_error_and_changes_nothing(
  launcher, never_stopped
):
  before = _contents(never_stopped)
  code, _, err = launcher.run(
    never_stopped, '--config.optimizer.weight_decay=0.5'
  )
  assert code == 2
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert 'optimizer.weight_decay=0.1, not 0.5' in err
  assert _contents(never_stopped) == before


def test_a_second_process_is_turned_away(launcher, tmp_path):
  workdir = tmp_path / 'shared'
  process = launcher.start(workdir, hold_at=2)
  try:
    runs.wait_until_held(process, workdir)
    before = _contents(workdir)
    code, _, err = launcher.run(workdir)
    assert code == 2
    assert err.startswith('error: another process is training in --workdir=')
    assert err.count('\n') == 1
    assert _contents(workdir) == before
  finally:
    runs.kill(process)


@pytest.mark.parametrize(
  ('rate', 'at'),
  [
    ('1e+16', 2),  # the loss of the second step overflows
    ('1e+30', 1),  # the update does, though its loss did not
  ],
)
def test_what_is_not_finite_stops_the_run(launcher, tmp_path, rate, at):
  workdir = tmp_path / 'diverged'
  code, _, err = launcher.run(
    workdir,
    '--config.optimizer.clip_norm=0',
    f'--config.optimizer.learning_rate={rate}',
  )
  assert code == 2
  assert err.startswith('error: the loss or its gradient is not finite')
  assert f'at step {at}; last good checkpoint: none yet' in err
  assert f'lower optimizer.learning_rate={rate}' in err
  assert err.count('\n') == 1
  assert runs.saved(workdir) == []
  lines = metrics.read(workdir)
  assert len(lines) == at - 1
  values = [v for line in lines for v in line.values()]
  assert all(math.isfinite(v) for v in values if isinstance(v, float))
