"""The loop: the only place with side effects.

config -> data -> tokenizer -> objective -> model -> rows -> mesh -> state
       -> compiled step -> loop -> checkpoint -> evaluate -> report
"""

import dataclasses
import pathlib
import shutil
import signal
import time
from collections.abc import Collection, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from lm import errors, evaluate, models, objectives, types
from lm.config import compatible, resolve as config_lib
from lm.data import packing, prepare
from lm.evaluation import baselines, validation
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
  flops,
  loaded,
  metrics,
  program,
  provenance,
  step,
)


def run(
  config,
  workdir: pathlib.Path,
  command: str,
  *,
  given: Collection[str] | None = None,
  process_began: float | None = None,
):
  """Trains, or goes on training, in a run folder until the budget is met.

  Args:
    config: a ConfigDict of `experiments/`, with overrides, not yet resolved.
    command: how to start this run again, for messages and provenance.
    given: see `config.resolve`.
    process_began: when the process did, by `time.monotonic`; None: now.

  Raises:
    UserError: a mistake in the config or the data, or a loss not finite.
    stopping.Interrupted: after SIGTERM or Ctrl-C; the state has been saved.
  """
  if process_began is None:
    process_began = time.monotonic()
  with run_folder.locked(workdir), signals.on_sigterm(command):
    _Run(config, workdir, command, given, process_began).go()


@dataclasses.dataclass
class _Position:
  """Where a run stands besides its state; the checkpoint's progress item."""

  accumulator: metrics.Accumulator
  metrics_length: int = 0
  samples_length: int = 0
  seconds: float = 0.0
  best: dict[str, float] | None = None


class _Run:
  """One start of a run; the attributes are what its phases share."""

  def __init__(
    self,
    config,
    workdir: pathlib.Path,
    command: str,
    flags: Collection[str] | None,
    process_began: float,
  ):
    self.workdir, self.command, self.flags = workdir, command, flags
    self.process_began = process_began
    # Of this start: None before its first step, empty once it has been logged.
    self.first_step: dict[str, float] | None = None
    self.checkpoints = None
    self.stored = hosts.decide(self._stored_config)
    self.resumed = self.stored is not None
    self.objective = self._resolve(config)  # It knows no tokenizer yet.
    compatible.check_training(self.config, self.objective)

  def _resolve(self, config) -> types.Objective:
    self.given = config
    self.config, objective = config_lib.resolve_with_objective(
      config, self.stored, given=self.flags
    )
    self.steps = self.config.train.steps
    return objective

  def go(self):
    """All phases, in order."""
    if self._ends_here():
      return
    self.prepared = program.find_prepared(self._prepare)
    self.tokenizer = self.prepared.tokenizer()
    self.objective = objectives.make(self.config, self.tokenizer)
    self.mesh = sharding.make_mesh(self.config)
    self.model = models.make(self.config, self.objective, self.mesh)
    self.rows = self._make_rows()
    self._make_program()
    if not budget.is_measured(self.config):
      self._measure_budget()
      if self._ends_here():
        return
    if text := budget.describe(self.config, self.objective):
      print(text)
    self.baselines = None
    if self.config.evaluate.baselines and hosts.is_first():
      self.baselines = baselines.Task(self.prepared)
    hosts.decide(self._write_folder)
    self.checkpoints = checkpoint.Checkpoints(
      self.workdir, keep=self.config.train.keep_checkpoints, writes=True
    )
    try:
      self._train_and_finish()
    finally:
      self.checkpoints.close()

  def _train_and_finish(self):
    state, position = self._restore_or_start()
    self.position = position
    if hosts.is_first():
      files.truncate(self.workdir / 'samples.txt', position.samples_length)
    self.writer = metrics.Writer(
      self.workdir, length=position.metrics_length, step=int(state.step)
    )
    self.began = time.monotonic()
    try:
      self.validation = validation.Validation(
        self.prepared.held_out('validation'),
        self.objective,
        self.model,
        self.mesh,
        self.config,
      )
      if text := self.validation.left_out:
        print(text)
      state = self._loop(state)
      self._finish(state)
    finally:
      self.writer.close()

  # Before the loop.

  def _stored_config(self) -> dict[str, Any] | None:
    """The config of a run that can be continued, else None."""
    folder = self.workdir / 'checkpoints'
    started = folder.exists() and any(
      p.name.isdigit() for p in folder.iterdir()
    )
    return config_lib.load(self.workdir) if started else None

  def _ends_here(self) -> bool:
    """Whether the budget was met before; then it is said."""
    finished = hosts.decide(self._is_finished)
    if finished and hosts.is_first():
      self._say_finished()
    return finished

  def _is_finished(self) -> bool:
    lines = metrics.read(self.workdir)
    last = lines[-1] if lines else {}
    return (
      self.resumed
      and last.get('split') == 'final'
      and last['step'] >= self.steps
    )

  def _say_finished(self):
    final = metrics.read(self.workdir)[-1]
    more = budget.flags_to_go_on(
      self.config, self.objective, self.given, final['step']
    )
    # Said before anything of the run is made.
    prompt = strategies.example(self.objective)
    sample = ''
    if prompt is not None:
      sample = (
        f'  sample  python run.py --workdir={self.workdir} --mode=generate '
        f"--prompt='{prompt}'\n"
      )
    print(
      f'{self.workdir} is finished: {final["step"]} steps, '
      f'{evaluate.headline(final)}.\n'
      f'  read    {self.workdir / "report.html"}\n'
      f'{sample}'
      f'  go on   {self.command} {more}\n'
      '  anew    the same command with another --workdir'
    )

  def _prepare(self) -> prepare.Prepared:
    """The prepared data: for a run that goes on, the very same as before."""
    data = self.config.data
    if not self.resumed:
      return prepare.prepare(data, report=print)
    known = provenance.read(self.workdir)
    directory = pathlib.Path(data.directory or known['data_directory'])
    prepared = prepare.load(directory) or prepare.prepare(data, report=print)
    if prepared.hash != known['data_hash']:
      raise errors.UserError(
        f'the run in {self.workdir} was trained on data with hash '
        f'{known["data_hash"]}, not {prepared.hash} ({prepared.directory}); '
        'restore the text it was made from, or give another --workdir'
      )
    return prepared

  def _make_rows(self) -> packing.Rows:
    data = self.config.data
    rows = packing.training_rows(
      self.config, self.prepared.train(), self.objective
    )
    if text := rows.left_out('training'):
      print(text)
    found = rows.rows_in_first_epoch(data.batch_size)
    if found < data.batch_size:
      raise errors.UserError(
        f'the training text fills {found} row(s) of data.sequence_length='
        f'{data.sequence_length} positions, less than one batch of '
        f'data.batch_size={data.batch_size}; give more text, or lower one'
      )
    return rows

  def _make_program(self):
    self.program = program.make(
      self.config, self.objective, self.model, self.mesh
    )
    data = self.config.data
    self.of_a_step = {
      'positions': data.batch_size * data.sequence_length,
      'flops': flops.train_step(self.config, self.objective),
    }

  def _measure_budget(self):
    """Turns train.seconds into steps, which the schedule is then made for."""
    config = ml_collections.ConfigDict(self.given.to_dict())
    print('timing some steps for train.seconds')
    config.train.step_seconds = program.step_seconds(self.program, self.rows)
    self._resolve(config)
    self._make_program()

  def _write_folder(self):
    """config.json, provenance.json, tokenizer/ and held_out/."""
    config_lib.save(self.config, self.workdir)
    provenance.write(
      self.workdir,
      command=self.command,
      config=self.config,
      prepared=self.prepared,
      model=self.model,
      prompt=strategies.example(self.objective),
    )
    for name in ('tokenizer', 'held_out'):
      target = self.workdir / name
      if not self.resumed:
        # Perhaps of a start that never reached its first checkpoint.
        shutil.rmtree(target, ignore_errors=True)
      run_folder.copy_folder(self.prepared.directory / name, target)

  def _restore_or_start(self) -> tuple[step.TrainState, _Position]:
    restored = self.checkpoints.restore_latest(self.program.abstract)
    if restored is None:
      return self.program.init(), _Position(metrics.Accumulator())
    state, progress = restored
    print(f'{self.workdir}: going on after step {int(state.step)}')
    return state, _Position(
      accumulator=metrics.Accumulator(progress['accumulator']),
      metrics_length=progress['metrics_length'],
      samples_length=progress['samples_length'],
      seconds=progress['seconds'],
      best=progress['best'],
    )

  # The loop.

  def _loop(self, state: step.TrainState) -> step.TrainState:
    cfg, first = self.config.train, int(state.step)
    if first >= self.steps:
      return state
    batches = self.program.batches(self.rows, first=first, stop=self.steps)
    began = time.monotonic()
    compiled = self.program.compile()
    print(f'compiled the train step in {time.monotonic() - began:.1f} s')
    with (
      signals.Signals() as stop,
      console.Progress('step', start=first, total=self.steps) as self.progress,
      profiling.Trace(
        self.workdir, count=cfg.profile, first=first + 1, last=self.steps
      ) as trace,
    ):
      self.speed = metrics.Speed(
        first, devices=self.mesh.devices.ravel(), **self.of_a_step
      )
      waiting = None
      for number, batch in enumerate(batches, first + 1):
        state, step_metrics = compiled(state, self.program.put(batch))
        # Read only now that the next step is on its way.
        if waiting:
          self._record(*waiting)
        waiting = (number, step_metrics)
        evaluating = _due(number, cfg.evaluate_every, self.steps)
        saving = _due(number, cfg.checkpoint_every, self.steps)
        tracing = trace.turns_after(number)
        stop_signal = stop.after(number)
        if evaluating or saving or tracing or stop_signal:
          self._record(*waiting)
          waiting = None
          values = self._validate(state, number) if evaluating else {}
          if saving or stop_signal:
            self._save(state, values.get('loss'))
          if tracing:
            trace.turn()
          self.speed.restart(number)
        if stop_signal:
          self._leave(number, stop_signal)
    return state

  def _record(self, number: int, step_metrics: step.Metrics):
    """Waits for a step's metrics, adds them up and logs when it is time."""
    step_metrics = jax.device_get(step_metrics)
    if self.first_step is None:
      seconds = time.monotonic() - self.process_began
      self.first_step = {'seconds_to_first_step': seconds}
      self.progress.line(f'first step after {seconds:.1f} s')
    self.position.accumulator.add(step_metrics, **self.of_a_step)
    sums = [total for total, _ in step_metrics['terms'].values()]
    norms = [step_metrics['gradient_norm'], step_metrics['update_norm']]
    self._check_finite(number, [*sums, *norms])
    log = _due(number, self.config.train.log_every, self.steps) or number == 1
    if not log:
      self.progress.update(number)
      return
    values = self.position.accumulator.losses(self.objective.coefficients)
    speed = self.speed.lap(number)
    self.writer.write(
      number,
      'train',
      {
        'seconds': self._seconds(),
        **values,
        'learning_rate': float(step_metrics['learning_rate']),
        'gradient_norm': float(step_metrics['gradient_norm']),
        **speed,
        **self.first_step,
        **self._read_so_far(number),
      },
    )
    self.first_step = {}
    loss = f'loss {values["loss"]:.3f}' if 'loss' in values else 'no loss'
    rate = f'{speed["tokens_per_second"]:,.0f} tokens/s'
    self.progress.update(number, f'{loss}, {rate}', log=True)

  def _read_so_far(self, number: int) -> dict[str, Any]:
    """Counters since the run began, up to a step."""
    accumulator = self.position.accumulator
    return {
      **accumulator.counters,
      'padding_share': accumulator.padding_share(),
      'epochs': self.rows.epochs(number * self.config.data.batch_size),
    }

  def _check_finite(self, number: int, values: Sequence[Any]):
    if np.all(np.isfinite(values)):
      return
    self.checkpoints.wait()
    saved = self.checkpoints.steps()
    last = f'step {saved[0]}' if saved else 'none yet'
    raise errors.UserError(
      f'the loss or its gradient is not finite at step {number}; last good '
      f'checkpoint: {last}, in {self.workdir / "checkpoints"}; lower '
      f'optimizer.learning_rate={self.config.optimizer.learning_rate}, raise '
      'optimizer.warmup_steps or set optimizer.clip_norm, in a new --workdir'
    )

  def _validate(self, state: step.TrainState, number: int) -> dict[str, Any]:
    values = self.validation(state.evaluated)
    # Here, before the checkpoint: an update may ruin what its loss did not.
    if 'loss' not in values:
      raise errors.UserError(
        'nothing is predicted in any of the validation rows; raise '
        f'data.sequence_length={self.config.data.sequence_length}, or the rate '
        f'of objective.{self.config.objective.name}, or give more held-out text'
      )
    numbers = [value for value in values.values() if np.isscalar(value)]
    self._check_finite(number, numbers)
    self.writer.write(
      number, 'validation', {'seconds': self._seconds(), **values}
    )
    best = self.position.best
    if best is None or values['loss'] < best['loss']:
      self.position.best = {'step': number, 'loss': values['loss']}
    self.progress.line(f'step {number}: validation loss {values["loss"]:.3f}')
    return values

  def _save(self, state: step.TrainState, validation_loss: float | None):
    samples = self.workdir / 'samples.txt'
    self.checkpoints.save(
      state,
      {
        'position': int(state.step),
        'accumulator': self.position.accumulator.state(),
        # All lines up to here are on the disk before the checkpoint is.
        'metrics_length': self.writer.sync(),
        'samples_length': samples.stat().st_size if samples.exists() else 0,
        'seconds': self._seconds(),
        'best': self.position.best,
      },
      self.config.to_dict(),
      validation_loss=validation_loss,
    )

  def _leave(self, number: int, signal_number: int):
    self.checkpoints.wait()
    raise signals.Interrupted(
      f'stopped by {signal.Signals(signal_number).name} after step {number} of '
      f'{self.steps}, saved; run the same command to go on: {self.command}',
      signal_number,
    )

  def _seconds(self) -> float:
    return self.position.seconds + time.monotonic() - self.began

  # After the loop.

  def _finish(self, state: step.TrainState):
    """Scores the test documents, writes samples, the final line, the page."""
    self.checkpoints.wait()
    number, params = int(state.step), state.evaluated
    cfg, folder = self.config, self.workdir / 'held_out'
    run = loaded.LoadedModel(
      config=cfg,
      tokenizer=self.tokenizer,
      objective=self.objective,
      model=self.model,
      mesh=self.mesh,
      params=params,
      step=number,
    )
    figures = evaluate.score(run, folder)
    self.writer.write(number, 'test', {'seconds': self._seconds(), **figures})
    sample, of_samples = samples.write(run, self.workdir)
    if not hosts.is_first():
      return
    known = self.baselines.result() if self.baselines else {}
    files.write_json(folder / 'baselines.json', known)
    last = {line['split']: line for line in metrics.read(self.workdir)}
    self.writer.write(
      number,
      'final',
      {
        'seconds': self._seconds(),
        **figures,
        **known,
        **of_samples,
        'loss': last['train'].get('loss'),
        # None is left out: of a run that was stopped before its first one, and
        # is asked for no more steps now.
        'validation_loss': last.get('validation', {}).get('loss'),
        'best_step': (self.position.best or {}).get('step'),
        **self._read_so_far(number),
      },
    )
    self.writer.sync()
    path = page.write(self.workdir)
    if sample:
      print(f'\n{sample}\n')
    print(evaluate.table(figures, known))
    if of_samples:
      print(diversity.table(of_samples))
    print(f'report: {path}')


def _due(number: int, every: int, last: int) -> bool:
  return number == last or (every > 0 and number % every == 0)
