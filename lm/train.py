"""The loop: the only place with side effects.

config -> data -> tokenizer -> objective -> model -> rows -> mesh -> state
       -> compiled step -> loop -> checkpoint -> evaluate -> report
"""

import dataclasses
import pathlib
import shutil
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm import (
  baselines,
  checkpoint,
  config as config_lib,
  console,
  errors,
  evaluate,
  files,
  generate,
  hosts,
  metrics,
  models,
  objectives,
  optimizer,
  provenance,
  run_folder,
  sharding,
  step,
  stopping,
  trained,
)
from lm.data import packing, pipeline, prepare
from lm.report import page


def run(config, workdir: pathlib.Path, command: str):
  """Trains, or goes on training, in a run folder until the budget is met.

  Args:
    config: a ConfigDict of `experiments/`, with overrides, not yet resolved.
    command: how to start this run again, for messages and provenance.

  Raises:
    UserError: a mistake in the config or the data, or a loss not finite.
    stopping.Interrupted: after SIGTERM or Ctrl-C; the state has been saved.
  """
  with run_folder.locked(workdir), stopping.on_sigterm(command):
    _Run(config, workdir, command).go()


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

  def __init__(self, config, workdir: pathlib.Path, command: str):
    self.workdir, self.command = workdir, command
    self.checkpoints = None
    stored = hosts.decide(self._stored_config)
    self.config = config_lib.resolve(config, stored)
    config_lib.check_training(self.config)
    self.steps = self.config.train.steps
    self.resumed = stored is not None

  def go(self):
    """All phases, in order."""
    if hosts.decide(self._is_finished):
      if hosts.is_first():
        self._say_finished()
      return
    self.prepared = self._find_prepared()
    self.coder = self.prepared.tokenizer()
    self.objective = objectives.make(self.config)
    self.model = models.make(self.config, self.objective.attention)
    self.rows = self._make_rows()
    self.mesh = sharding.make_mesh(self.config)
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
      self.validation = evaluate.Validation(
        self.prepared.held_out('validation'),
        self.objective,
        self.model,
        self.mesh,
        self.config,
      )
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
    print(
      f'{self.workdir} is finished: {final["step"]} steps, '
      f'{final["bits_per_byte"]:.3f} bits per byte on the test documents.\n'
      f'  read    {self.workdir / "report.html"}\n'
      f'  sample  python run.py --workdir={self.workdir} --mode=generate '
      '--prompt="..."\n'
      f'  go on   {self.command} --config.train.steps={2 * final["step"]}\n'
      '  anew    the same command with another --workdir'
    )

  def _find_prepared(self) -> prepare.Prepared:
    """The data, which one process prepares while the others wait."""
    directory = hosts.decide(lambda: str(self._prepare().directory))
    prepared = prepare.load(pathlib.Path(directory))
    if prepared is None:
      raise errors.UserError(
        f'the data prepared in {directory} is not there for every process; '
        'give a data.directory on a file system that all hosts share'
      )
    return prepared

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
    rows = packing.Rows(
      self.prepared.train(),
      self.objective,
      sequence_length=data.sequence_length,
      seed=self.config.seed,
      cross_document_attention=data.cross_document_attention,
    )
    found = rows.rows_in_first_epoch(data.batch_size)
    if found < data.batch_size:
      raise errors.UserError(
        f'the training text fills {found} row(s) of data.sequence_length='
        f'{data.sequence_length} positions, less than one batch of '
        f'data.batch_size={data.batch_size}; give more text, or lower one'
      )
    return rows

  def _write_folder(self):
    """config.json, provenance.json, tokenizer/ and held_out/."""
    config_lib.save(self.config, self.workdir)
    provenance.write(
      self.workdir,
      command=self.command,
      config=self.config,
      prepared=self.prepared,
      model=self.model,
    )
    for name in ('tokenizer', 'held_out'):
      target = self.workdir / name
      if not self.resumed:
        # Perhaps of a start that never reached its first checkpoint.
        shutil.rmtree(target, ignore_errors=True)
      run_folder.copy_folder(self.prepared.directory / name, target)

  def _restore_or_start(self) -> tuple[step.TrainState, _Position]:
    self.transform = optimizer.make(self.config)

    self.abstract = step.abstract_state(self.model, self.transform, self.mesh)
    restored = self.checkpoints.restore_latest(self.abstract)
    if restored is None:
      init = jax.jit(
        lambda: step.init_state(self.model, self.transform, self.config.seed),
        out_shardings=jax.tree.map(lambda x: x.sharding, self.abstract),
      )
      return init(), _Position(metrics.Accumulator())
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
    cfg, data = self.config.train, self.config.data
    first = int(state.step)
    if first >= self.steps:
      return state
    batches = pipeline.iterate(
      self.rows,
      batch_size=data.batch_size,
      local_rows=sharding.local_rows(self.mesh, data.batch_size),
      first=first,
      stop=self.steps,
      threads=data.threads,
      prefetch=data.prefetch,
    )
    compiled = self._compile(state)
    self.tick = (time.monotonic(), first)
    with (
      stopping.Signals() as stop,
      console.Progress('step', start=first, total=self.steps) as self.progress,
    ):
      waiting = None
      for number, batch in enumerate(batches, first + 1):
        batch = sharding.put_batch(self.mesh, batch, data.batch_size)
        state, step_metrics = compiled(state, batch)
        # Read only now that the next step is on its way.
        if waiting:
          self._record(*waiting)
        waiting = (number, step_metrics)
        evaluating = _due(number, cfg.evaluate_every, self.steps)
        saving = _due(number, cfg.checkpoint_every, self.steps)
        stop_signal = stop.after(number)
        if evaluating or saving or stop_signal:
          self._record(*waiting)
          waiting = None
          values = self._validate(state, number) if evaluating else {}
          if saving or stop_signal:
            self._save(state, values.get('loss'))
          self.tick = (time.monotonic(), number)
        if stop_signal:
          self._leave(number, stop_signal)
    return state

  def _compile(self, state: step.TrainState):
    data = self.config.data
    train_step = step.make_train_step(
      self.objective,
      self.model,
      self.transform,
      optimizer.make_schedule(self.config),
      microbatches=self.config.train.microbatches,
    )
    empty = packing.pack([], data.sequence_length)
    batch = packing.stack(
      [empty] * len(sharding.local_rows(self.mesh, data.batch_size))
    )
    batch = sharding.put_batch(self.mesh, batch, data.batch_size)
    began = time.monotonic()
    jitted = step.jit_step(train_step, self.mesh, self.abstract)
    compiled = jitted.lower(state, batch).compile()
    print(f'compiled the train step in {time.monotonic() - began:.1f} s')
    return compiled

  def _record(self, number: int, step_metrics: step.Metrics):
    """Waits for a step's metrics, adds them up and logs when it is time."""
    step_metrics = jax.device_get(step_metrics)
    data = self.config.data
    self.position.accumulator.add(
      step_metrics, positions=data.batch_size * data.sequence_length
    )
    sums = [total for total, _ in step_metrics['terms'].values()]
    norms = [step_metrics['gradient_norm'], step_metrics['update_norm']]
    self._check_finite(number, [*sums, *norms])
    log = _due(number, self.config.train.log_every, self.steps) or number == 1
    if not log:
      self.progress.update(number)
      return
    values = self.position.accumulator.losses(self.objective.coefficients)
    then, before = self.tick
    now = time.monotonic()
    self.tick = (now, number)
    positions = (number - before) * data.batch_size * data.sequence_length
    speed = positions / (now - then)
    self.writer.write(
      number,
      'train',
      {
        'seconds': self._seconds(),
        **values,
        'learning_rate': float(step_metrics['learning_rate']),
        'gradient_norm': float(step_metrics['gradient_norm']),
        'tokens_per_second': speed,
        **self.position.accumulator.counters,
        'epochs': self.rows.epochs(number * data.batch_size),
      },
    )
    loss = f'loss {values["loss"]:.3f}' if 'loss' in values else 'no loss'
    self.progress.update(number, f'{loss}, {speed:,.0f} tokens/s', log=True)

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

  def _validate(self, state: step.TrainState, number: int) -> dict[str, float]:
    values = self.validation(state.params)
    # Here, before the checkpoint: an update may ruin what its loss did not.
    self._check_finite(number, list(values.values()))
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
    raise stopping.Interrupted(
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
    number, params = int(state.step), state.params
    cfg, folder = self.config, self.workdir / 'held_out'
    run = trained.Trained(
      config=cfg,
      tokenizer=self.coder,
      objective=self.objective,
      model=self.model,
      mesh=self.mesh,
      params=params,
      step=number,
    )
    figures = evaluate.score(run, folder)
    self.writer.write(number, 'test', {'seconds': self._seconds(), **figures})
    sample = self._write_samples(run)
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
        'loss': last['train'].get('loss'),
        'validation_loss': last['validation']['loss'],
        'best_step': (self.position.best or {}).get('step'),
        **self.position.accumulator.counters,
        'epochs': self.rows.epochs(number * cfg.data.batch_size),
      },
    )
    self.writer.sync()
    path = page.write(self.workdir)
    if sample:
      print(f'\n{sample}\n')
    print(evaluate.table(figures, known))
    print(f'report: {path}')

  def _write_samples(self, run: trained.Trained) -> str:
    """Continues test documents; the first sample, for the terminal."""
    count = self.config.generate.samples
    prompts = evaluate.prompts(self.workdir / 'held_out', count)
    if not prompts:
      return ''
    prompts = [self._shortened(prompt) for prompt in prompts]
    completions = generate.Generator(run)(prompts)
    blocks = [
      f'=== step {run.step}, sample {i} ===\n{prompt}[...]{completion.text}\n'
      for i, (prompt, completion) in enumerate(
        zip(prompts, completions, strict=True), 1
      )
    ]
    if hosts.is_first():
      files.write(self.workdir / 'samples.txt', '\n'.join(blocks))
    return f'{prompts[0]}[...]{completions[0].text}'

  def _shortened(self, prompt: str) -> str:
    """Leaves half of the context to the continuation."""
    room = self.config.data.sequence_length // 2
    while prompt and len(self.coder.encode(prompt)) > room - 1:  # BOS
      prompt = prompt[: len(prompt) * 3 // 4]
    return prompt


def _due(number: int, every: int, last: int) -> bool:
  return number == last or (every > 0 and number % every == 0)
