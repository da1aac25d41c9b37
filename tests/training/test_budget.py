"""Budgets end a run at a step that is known beforehand and does not change."""

import pathlib

import pytest
from helpers import runs

from lm import errors, objectives, train
from lm.config import resolve as config_lib
from lm.training import budget, flops, metrics, program, step_log

# The tiny config: positions of a step, and what it pretends to take.
POSITIONS = 8 * 32
STEP_SECONDS = 0.5


def given(config, **budgets):
  """The config with no budget but these, some of less than its warmup."""
  config.model.num_layers = 1
  config.optimizer.warmup_steps = 0
  config.train.update(
    {'steps': None, 'tokens': None, 'flops': None, 'seconds': None, **budgets}
  )
  return config


@pytest.mark.parametrize(
  ('budgets', 'steps'),
  [
    ({}, 1000),
    ({'steps': 7}, 7),
    ({'tokens': 10 * POSITIONS}, 10),
    ({'tokens': 10 * POSITIONS + 1}, 11),
    ({'tokens': 1}, 1),
    ({'tokens': 2**62}, 2**31 - 1),
    ({'seconds': 5.0, 'step_seconds': STEP_SECONDS}, 10),
    ({'seconds': 5.1, 'step_seconds': STEP_SECONDS}, 11),
    ({'seconds': 0.001, 'step_seconds': STEP_SECONDS}, 1),
    ({'steps': 9, 'tokens': 10 * POSITIONS}, 9),
    ({'steps': 11, 'tokens': 10 * POSITIONS}, 10),
    ({'steps': 9, 'seconds': 4.0, 'step_seconds': STEP_SECONDS}, 8),
  ],
)
def test_the_first_budget_that_is_reached_ends_the_run(config, budgets, steps):
  resolved = config_lib.resolve(given(config, **budgets))
  assert resolved.train.steps == steps
  assert resolved.optimizer.schedule_steps == steps
  # What is on disk resolves to itself.
  assert config_lib.resolve(resolved).to_dict() == resolved.to_dict()


def test_flops_end_the_run_at_the_step_that_reaches_them(config):
  resolved = config_lib.resolve(given(config, steps=3))
  a_step = flops.train_step(resolved, objectives.make(resolved))
  for value, steps in ((12 * a_step, 12), (12 * a_step + 1, 13), (1.0, 1)):
    resolved = config_lib.resolve(given(config, flops=float(value)))
    assert resolved.train.steps == steps


def test_seconds_wait_to_be_measured_and_other_budgets_do_not(config):
  unmeasured = config_lib.resolve(given(config, steps=5, seconds=1.0))
  assert not budget.is_measured(unmeasured)
  assert unmeasured.train.steps == 5
  config.train.step_seconds = STEP_SECONDS
  measured = config_lib.resolve(config)
  assert budget.is_measured(measured)
  assert measured.train.steps == 2


def test_a_warmup_of_many_steps_waits_for_the_measurement(config):
  given(config, seconds=1.0).optimizer.warmup_steps = 2000
  config_lib.resolve(config)
  config.train.step_seconds = STEP_SECONDS
  with pytest.raises(errors.UserError, match='warmup_steps=2000'):
    config_lib.resolve(config)


def test_a_run_that_goes_on_keeps_its_speed_and_its_schedule(config):
  given(config, seconds=5.0, step_seconds=STEP_SECONDS)
  stored = config_lib.resolve(config).to_dict()
  given(config, seconds=5.0, step_seconds=None)
  assert config_lib.resolve(config, stored).to_dict() == stored
  longer = config_lib.resolve(given(config, seconds=20.0), stored)
  assert longer.train.steps == 40
  assert longer.optimizer.schedule_steps == 10
  other = config_lib.resolve(given(config, tokens=60 * POSITIONS), stored)
  assert other.train.steps == 60


@pytest.mark.parametrize(
  ('budgets', 'flags'),
  [
    ({}, '--config.train.steps=2000'),
    ({'steps': 10}, '--config.train.steps=20'),
    # As after a run of 10 steps that is now asked for 4.
    ({'steps': 4, 'done': 10}, '--config.train.steps=20'),
    ({'tokens': 10 * POSITIONS}, f'--config.train.tokens={20 * POSITIONS}'),
    # Steps that were not given are no budget, were they 1000 by default.
    ({'tokens': 600 * POSITIONS}, f'--config.train.tokens={1200 * POSITIONS}'),
    (
      {'steps': 10, 'tokens': 15 * POSITIONS},
      f'--config.train.steps=20 --config.train.tokens={30 * POSITIONS}',
    ),
    ({'steps': 40, 'seconds': 5.0}, '--config.train.seconds=10.0'),
  ],
)
def test_the_flags_to_continue_double_the_run(config, budgets, flags):
  done = budgets.pop('done', None)
  given(config, step_seconds=STEP_SECONDS, **budgets)
  resolved, objective = config_lib.resolve_with_objective(config)
  done = done or resolved.train.steps
  assert budget.flags_to_continue(resolved, objective, config, done) == flags
  for flag in flags.split():
    name, value = flag.removeprefix('--config.train.').split('=')
    config.train[name] = type(config.train[name] or 0)(value)
  assert config_lib.resolve(config).train.steps >= 2 * done


def _train(config, workdir: pathlib.Path):
  config.train.update(evaluate_every=0, checkpoint_every=3, log_every=3)
  config.generate.samples = 0
  train.run(config, workdir, 'python run.py')
  return metrics.read(workdir)


class _Killed(Exception):  # noqa: N818
  """Stands in for the end of the process."""


def test_seconds_are_measured_once_and_change_no_bit(
  config, tmp_path, monkeypatch, capsys
):
  """A run that is measured, killed and gone on with is a plain run of steps."""
  given(config, seconds=7.5 * STEP_SECONDS)
  measure, record = program.step_seconds, step_log.StepLog._record
  measured = []

  def pretend(*arguments):
    measured.append(measure(*arguments))
    return STEP_SECONDS

  def killed(self, step, values):
    if step == 5:
      raise _Killed
    record(self, step, values)

  monkeypatch.setattr(program, 'step_seconds', pretend)
  with monkeypatch.context() as patch:
    patch.setattr(step_log.StepLog, '_record', killed)
    with pytest.raises(_Killed):
      _train(config, tmp_path / 'seconds')
  lines = _train(config, tmp_path / 'seconds')
  assert 'continuing after step 3' in capsys.readouterr().out
  assert (lines[-1]['split'], lines[-1]['step']) == ('final', 8)
  stored = config_lib.load(tmp_path / 'seconds')
  assert stored['train']['steps'] == 8
  assert stored['train']['step_seconds'] == STEP_SECONDS
  assert stored['optimizer']['schedule_steps'] == 8
  _train(given(config, steps=8), tmp_path / 'steps')
  assert runs.lines(tmp_path / 'steps') == runs.lines(tmp_path / 'seconds')

  # Finished under its own budget; with twice the seconds it goes on.
  given(config, seconds=7.5 * STEP_SECONDS)
  assert _train(config, tmp_path / 'seconds') == lines
  said = capsys.readouterr().out
  assert f'--config.train.seconds={15 * STEP_SECONDS}' in said
  given(config, seconds=15 * STEP_SECONDS)
  assert _train(config, tmp_path / 'seconds')[-1]['step'] == 15
  stored = config_lib.load(tmp_path / 'seconds')
  assert stored['optimizer']['schedule_steps'] == 8
  assert len(measured) == 1
  assert 1e-5 < measured[0] < 100


def test_a_run_asked_for_less_than_it_has_done_ends_where_it_is(
  config, tmp_path, monkeypatch
):
  """Stopped before it was ever validated."""
  record = step_log.StepLog._record

  def killed(self, step, values):
    if step == 5:
      raise _Killed
    record(self, step, values)

  with monkeypatch.context() as patch:
    patch.setattr(step_log.StepLog, '_record', killed)
    with pytest.raises(_Killed):
      _train(given(config, steps=8), tmp_path / 'run')
  lines = _train(given(config, steps=2), tmp_path / 'run')
  assert 'validation' not in {line['split'] for line in lines}
  assert (lines[-1]['split'], lines[-1]['step']) == ('final', 3)
  assert 'validation_loss' not in lines[-1]
  assert (tmp_path / 'run' / 'report.html').exists()


def test_counters_are_of_the_whole_run(config, tmp_path):
  lines = _train(given(config, tokens=7 * POSITIONS), tmp_path / 'run')
  final = lines[-1]
  resolved = config_lib.resolve(config)
  a_step = flops.train_step(resolved, objectives.make(resolved))
  assert final['positions'] == 7 * POSITIONS
  assert final['flops'] == 7 * a_step
  train_lines = [line for line in lines if line['split'] == 'train']
  assert [line['flops'] // a_step for line in train_lines] == [1, 3, 6, 7]
  assert 'seconds_to_first_step' in train_lines[0]
  for line in train_lines[1:]:
    assert 'seconds_to_first_step' not in line
  # The peak of a CPU is not known.
  assert all('model_flops_utilization' not in line for line in lines)
