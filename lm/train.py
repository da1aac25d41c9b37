"""Training: the way of the data, from a config to a report.

config -> data -> tokenizer -> objective -> model -> rows -> mesh -> state
       -> compiled step -> loop -> checkpoint -> evaluate -> report

The loop is the only place with side effects.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from lm import errors, evaluate, models, objectives, types
from lm.config import compatible, resolve as config_lib
from lm.data import packing, prepare, tokenizer as tokenizer_lib
from lm.evaluation import baselines as baselines_lib, validation
from lm.generation import diversity, samples, strategies
from lm.report import page
from lm.runtime import (
  console,
  files,
  hosts,
  profiling,
  run_folder,
  sharding,
  signals,
)
from lm.training import (
  budget,
  checkpoint,
  inputs,
  loaded,
  metrics,
  position as position_lib,
  program as program_lib,
  provenance,
  step,
  step_log,
)


def run(
  config,
  workdir: pathlib.Path,
  command: str,
  *,
  given: Collection[str] | None = None,
  process_began: float | None = None,
):
  """Trains, or continues training, in a run folder until the budget is met.

  Args:
    config: a ConfigDict of `experiments/`, with overrides, not yet resolved.
    command: how to start this run again, for messages and provenance.
    given: see `resolve.resolve`.
    process_began: when the process did, by `time.monotonic`; None: now.

  Raises:
    UserError: a mistake in the config or the data, or a loss not finite.
    signals.Interrupted: after SIGTERM or Ctrl-C; the state has been saved.
  """
  if process_began is None:
    process_began = time.monotonic()
  with run_folder.locked(workdir), signals.on_sigterm(command):
    _run(config, workdir, command, given, process_began)


def _run(
  asked,
  workdir: pathlib.Path,
  command: str,
  given: Collection[str] | None,
  process_began: float,
):
  """See `run`; `asked` is the config before it is resolved."""
  stored = hosts.decide(lambda: _stored_config(workdir))
  resumed = stored is not None
  # This objective has no tokenizer yet.
  config, objective = config_lib.resolve_with_objective(
    asked, stored, given=given
  )
  compatible.check_training(config, objective)
  if _ends_here(workdir, command, asked, config, objective, resumed=resumed):
    return

  prepared = inputs.find_prepared(
    lambda: inputs.prepare_for(workdir, config.data, resumed=resumed)
  )
  tokenizer = prepared.tokenizer()
  objective = objectives.make(config, tokenizer)
  mesh = sharding.make_mesh(config)
  model = models.make(config, objective, mesh)
  rows = inputs.make_rows(config, prepared, objective)
  program = program_lib.make(config, objective, model, mesh)
  if not budget.is_measured(config):
    asked = _with_step_seconds(asked, program, rows)
    config = config_lib.resolve(asked, stored, given=given)
    if _ends_here(workdir, command, asked, config, objective, resumed=resumed):
      return
    # The schedule is made for the steps that the seconds come to.
    program = program_lib.make(config, objective, model, mesh)
  if text := budget.describe(config, objective):
    print(text)
  baselines = None
  if config.evaluate.baselines and hosts.is_first():
    baselines = baselines_lib.Task(prepared)
  hosts.decide(
    lambda: _write_folder(workdir, command, program, prepared, resumed=resumed)
  )

  checkpoints = checkpoint.Checkpoints(
    workdir, keep=config.train.keep_checkpoints, writes=True
  )
  with contextlib.closing(checkpoints):
    state, progress = _restore_or_start(workdir, program, checkpoints)
    position = position_lib.Position(progress)
    with contextlib.closing(_open_writer(workdir, state, progress)) as writer:
      validate = _make_validation(program, prepared)
      run = _Run(
        workdir, command, program, rows, position, validate, checkpoints, writer
      )
      state = _loop(run, state, process_began)
      checkpoints.wait()
      _finish(run, state, tokenizer, baselines)


@dataclasses.dataclass(frozen=True)
class _Run:
  """What the loop and its hooks share, complete before the first step.

  workdir: the run folder.
  command: how to start this run again.
  program: the config and what is made of it.
  rows: the training text, packed.
  position: where the run stands beside its state.
  validation: parameters -> figures on held-out rows.
  checkpoints, writer: where states and lines are stored.
  """

  workdir: pathlib.Path
  command: str
  program: program_lib.Program
  rows: packing.Rows
  position: position_lib.Position
  validation: validation.Validation
  checkpoints: checkpoint.Checkpoints
  writer: metrics.Writer

  @property
  def config(self) -> ml_collections.FrozenConfigDict:
    return self.program.config

  @property
  def steps(self) -> int:
    """Steps of the whole run, from its start."""
    return self.config.train.steps


# Before the loop.


def _stored_config(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The config of a run that can be continued, else None."""
  folder = workdir / 'checkpoints'
  started = folder.exists() and any(p.name.isdigit() for p in folder.iterdir())
  return config_lib.load(workdir) if started else None


def _ends_here(
  workdir: pathlib.Path,
  command: str,
  asked,
  config,
  objective: types.Objective,
  *,
  resumed: bool,
) -> bool:
  """Whether an earlier start met the budget; prints what to do then."""
  finished = hosts.decide(
    lambda: resumed and _is_finished(workdir, config.train.steps)
  )
  if finished and hosts.is_first():
    _print_finished(workdir, command, asked, config, objective)
  return finished


def _is_finished(workdir: pathlib.Path, steps: int) -> bool:
  lines = metrics.read(workdir)
  last = lines[-1] if lines else {}
  return last.get('split') == 'final' and last['step'] >= steps


def _print_finished(
  workdir: pathlib.Path,
  command: str,
  asked,
  config,
  objective: types.Objective,
):
  final = metrics.read(workdir)[-1]
  more = budget.flags_to_continue(config, objective, asked, final['step'])
  prompt = strategies.example(objective)
  sample = ''
  if prompt is not None:
    sample = (
      f'  sample    python run.py --workdir={workdir} --mode=generate '
      f"--prompt='{prompt}'\n"
    )
  print(
    f'{workdir} is finished: {final["step"]} steps, '
    f'{evaluate.headline(final)}.\n'
    f'  read      {workdir / "report.html"}\n'
    f'{sample}'
    f'  continue  {command} {more}\n'
    '  restart   the same command with another --workdir'
  )


def _with_step_seconds(
  asked, program: program_lib.Program, rows: packing.Rows
) -> ml_collections.ConfigDict:
  """The config with the measured seconds of a step, for `train.seconds`."""
  config = ml_collections.ConfigDict(asked.to_dict())
  print('timing some steps for train.seconds')
  config.train.step_seconds = program_lib.step_seconds(program, rows)
  return config


def _write_folder(
  workdir: pathlib.Path,
  command: str,
  program: program_lib.Program,
  prepared: prepare.Prepared,
  *,
  resumed: bool,
):
  """Writes config.json, provenance.json, tokenizer/ and held_out/."""
  config_lib.save(program.config, workdir)
  provenance.write(
    workdir,
    command=command,
    config=program.config,
    prepared=prepared,
    model=program.model,
    prompt=strategies.example(program.objective),
  )
  for name in ('tokenizer', 'held_out'):
    target = workdir / name
    if not resumed:
      # A start that never reached its first checkpoint may have left one.
      shutil.rmtree(target, ignore_errors=True)
    run_folder.copy_folder(prepared.directory / name, target)


def _restore_or_start(
  workdir: pathlib.Path,
  program: program_lib.Program,
  checkpoints: checkpoint.Checkpoints,
) -> tuple[step.TrainState, Mapping[str, Any]]:
  """The state and the progress beside it; {} for a new run."""
  restored = checkpoints.restore_latest(program.abstract)
  if restored is None:
    return program.init(), {}
  state, progress = restored
  print(f'{workdir}: continuing after step {int(state.step)}')
  return state, progress


def _open_writer(
  workdir: pathlib.Path, state: step.TrainState, progress: Mapping[str, Any]
) -> metrics.Writer:
  """Cuts the files back to the checkpoint; new lines follow what is left."""
  if hosts.is_first():
    files.truncate(workdir / 'samples.txt', progress.get('samples_length', 0))
  length = progress.get('metrics_length', 0)
  return metrics.Writer(workdir, length=length, step=int(state.step))


def _make_validation(
  program: program_lib.Program, prepared: prepare.Prepared
) -> validation.Validation:
  validate = validation.Validation(
    prepared.held_out('validation'),
    program.objective,
    program.model,
    program.mesh,
    program.config,
  )
  if text := validate.left_out:
    print(text)
  return validate


# The loop and its hooks.


def _loop(
  run: _Run, state: step.TrainState, process_began: float
) -> step.TrainState:
  """Steps up to the budget.

  At a boundary the order is: train line, evaluation, checkpoint.
  """
  cfg, first = run.config.train, int(state.step)
  if first >= run.steps:
    return state
  batches = run.program.batches(run.rows, first=first, stop=run.steps)
  began = time.monotonic()
  compiled = run.program.compile()
  print(f'compiled the train step in {time.monotonic() - began:.1f} s')
  with (
    signals.Signals() as stop,
    console.Progress('step', start=first, total=run.steps) as bar,
    profiling.Trace(
      run.workdir, count=cfg.profile, first=first + 1, last=run.steps
    ) as trace,
  ):
    log = step_log.StepLog(
      *(run.program, run.rows, run.position, run.writer, bar),
      first=first,
      process_began=process_began,
      check_finite=functools.partial(_check_finite, run),
    )
    for number, batch in enumerate(batches, first + 1):
      state, step_metrics = compiled(state, run.program.put(batch))
      # Reads the step before, now that this one has been dispatched.
      log.hold(number, step_metrics)
      evaluating = step_log.due(number, cfg.evaluate_every, run.steps)
      saving = step_log.due(number, cfg.checkpoint_every, run.steps)
      tracing = trace.turns_after(number)
      stop_signal = stop.after(number)
      if not (evaluating or saving or tracing or stop_signal):
        continue
      log.read()
      loss = _validate(run, state, bar) if evaluating else None
      if saving or stop_signal:
        _save(run, state, loss)
      if tracing:
        trace.turn()
      log.restart(number)
      if stop_signal:
        _leave(run, number, stop_signal)
  return state


def _validate(
  run: _Run, state: step.TrainState, bar: console.Progress
) -> float:
  """Writes the validation line; the loss.

  Raises:
    UserError: it is not finite, or nothing is predicted.
  """
  number, values = int(state.step), run.validation(state.evaluated)
  # Checked before the checkpoint: an update may ruin what its loss did not.
  if 'loss' not in values:
    raise errors.UserError(
      'nothing is predicted in any of the validation rows; raise '
      f'data.sequence_length={run.config.data.sequence_length}, predict more '
      'of the text (--help=objective lists the settings), or give more '
      'held-out text'
    )
  numbers = [value for value in values.values() if np.isscalar(value)]
  _check_finite(run, number, numbers)
  run.writer.write(
    number, 'validation', {'seconds': run.position.seconds(), **values}
  )
  run.position.note_validation(number, values['loss'])
  bar.line(f'step {number}: validation loss {values["loss"]:.3f}')
  return values['loss']


def _check_finite(run: _Run, number: int, values: Sequence[Any]):
  if np.all(np.isfinite(values)):
    return
  run.checkpoints.wait()
  saved = run.checkpoints.steps()
  last = f'step {saved[0]}' if saved else 'none yet'
  raise errors.UserError(
    f'the loss or its gradient is not finite at step {number}; last good '
    f'checkpoint: {last}, in {run.workdir / "checkpoints"}; lower '
    f'optimizer.learning_rate={run.config.optimizer.learning_rate}, raise '
    'optimizer.warmup_steps or set optimizer.clip_norm, in a new --workdir'
  )


def _save(run: _Run, state: step.TrainState, validation_loss: float | None):
  samples_path = run.workdir / 'samples.txt'
  progress = run.position.progress(
    int(state.step),
    # All lines up to here are on the disk before the checkpoint is.
    metrics_length=run.writer.sync(),
    samples_length=samples_path.stat().st_size if samples_path.exists() else 0,
  )
  run.checkpoints.save(
    state, progress, run.config.to_dict(), validation_loss=validation_loss
  )


def _leave(run: _Run, number: int, signal_number: int):
  run.checkpoints.wait()
  raise signals.Interrupted(
    f'stopped by {signal.Signals(signal_number).name} after step {number} of '
    f'{run.steps}, saved; run the same command to continue: {run.command}',
    signal_number,
  )


# After the loop.


def _finish(
  run: _Run,
  state: step.TrainState,
  tokenizer: tokenizer_lib.Tokenizer,
  baselines: baselines_lib.Task | None,
):
  """Scores the test documents, writes samples, the final line, the page."""
  number, program = int(state.step), run.program
  trained = loaded.LoadedModel(
    config=program.config,
    tokenizer=tokenizer,
    objective=program.objective,
    model=program.model,
    mesh=program.mesh,
    params=state.evaluated,
    step=number,
  )
  held_out = run.workdir / 'held_out'
  figures = evaluate.score(trained, held_out)
  run.writer.write(
    number, 'test', {'seconds': run.position.seconds(), **figures}
  )
  sample, sample_figures = samples.write(trained, run.workdir)
  if not hosts.is_first():
    return
  known = baselines.result() if baselines else {}
  files.write_json(held_out / 'baselines.json', known)
  _write_final(run, number, {**figures, **known, **sample_figures})
  path = page.write(run.workdir)
  if sample:
    print(f'\n{sample}\n')
  print(evaluate.table(figures, known))
  if sample_figures:
    print(diversity.table(sample_figures))
  print(f'report: {path}')


def _write_final(run: _Run, number: int, figures: Mapping[str, Any]):
  """Writes the line that says that the run is finished, and syncs it."""
  last = {line['split']: line for line in metrics.read(run.workdir)}
  rows_read = number * run.config.data.batch_size
  run.writer.write(
    number,
    'final',
    {
      'seconds': run.position.seconds(),
      **figures,
      'loss': last['train'].get('loss'),
      # None, and so left out, where the run was stopped before its first
      # validation and no more steps are asked for.
      'validation_loss': last.get('validation', {}).get('loss'),
      'best_step': (run.position.best or {}).get('step'),
      **run.position.accumulator.totals(epochs=run.rows.epochs(rows_read)),
    },
  )
  run.writer.sync()
