"""The hook that reads what steps return: sums, train lines and the bar."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lm.data import packing
from lm.runtime import console
from lm.training import (
  metrics,
  position as position_lib,
  program as program_lib,
  step,
)


class StepLog:
  """Reads the metrics of each step once the next one has been dispatched.

  Reading waits for the device; once the next step is dispatched, that costs
  nothing.
  """

  def __init__(
    self,
    program: program_lib.Program,
    rows: packing.Rows,
    position: position_lib.Position,
    writer: metrics.Writer,
    bar: console.Progress,
    *,
    first: int,
    process_began: float,
    check_finite: Callable[[int, Sequence[Any]], None],
  ):
    """Logs steps from `first` + 1 on.

    Args:
      process_began: when the process did, by `time.monotonic`.
      check_finite: raises unless values of a step are finite.
    """
    self._program, self._rows, self._position = program, rows, position
    self._writer, self._bar = writer, bar
    self._process_began, self._check_finite = process_began, check_finite
    self._per_step = program.per_step()
    self._speed = metrics.Speed(
      first, devices=program.mesh.devices.ravel(), **self._per_step
    )
    self._first = first
    self._held: tuple[int, step.Metrics] | None = None
    # Figures of this start for its first line; empty once they are logged.
    self._of_start: dict[str, float] = {}

  def hold(self, number: int, step_metrics: step.Metrics):
    """Reads the step that is held, then holds this one, just dispatched."""
    self.read()
    self._held = number, step_metrics

  def read(self):
    """Waits for the step that is held, if any; adds it up and logs it if due.

    Raises:
      UserError: its loss or its gradient is not finite.
    """
    if self._held:
      number, step_metrics = self._held
      self._held = None
      self._record(number, jax.device_get(step_metrics))

  def restart(self, number: int):
    """Leaves the time since step `number` ended out of the speed."""
    self._speed.restart(number)

  def _record(self, number: int, step_metrics: step.Metrics):
    if number == self._first + 1:
      seconds = time.monotonic() - self._process_began
      self._of_start = {'seconds_to_first_step': seconds}
      self._bar.line(f'first step after {seconds:.1f} s')
    self._position.accumulator.add(step_metrics, **self._per_step)
    sums = [total for total, _ in step_metrics['terms'].values()]
    norms = [step_metrics['gradient_norm'], step_metrics['update_norm']]
    self._check_finite(number, [*sums, *norms])
    cfg = self._program.config.train
    if number == 1 or due(number, cfg.log_every, cfg.steps):
      self._write(number, step_metrics)
    else:
      self._bar.update(number)

  def _write(self, number: int, step_metrics: step.Metrics):
    accumulator = self._position.accumulator
    rows_read = number * self._program.config.data.batch_size
    values = accumulator.losses(self._program.objective.coefficients)
    speed = self._speed.lap(number)
    self._writer.write(
      number,
      'train',
      {
        'seconds': self._position.seconds(),
        **values,
        'learning_rate': float(step_metrics['learning_rate']),
        'gradient_norm': float(step_metrics['gradient_norm']),
        **speed,
        **self._of_start,
        **accumulator.totals(epochs=self._rows.epochs(rows_read)),
      },
    )
    self._of_start = {}
    loss = f'loss {values["loss"]:.3f}' if 'loss' in values else 'no loss'
    rate = f'{speed["tokens_per_second"]:,.0f} tokens/s'
    self._bar.update(number, f'{loss}, {rate}', log=True)


def due(number: int, every: int, last: int) -> bool:
  """Whether step `number` is a multiple of `every` (0: never) or the last."""
  return number == last or (every > 0 and number % every == 0)
