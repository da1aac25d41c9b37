"""Where a run stands beside its state: the `progress` item of a checkpoint."""

import time
from collections.abc import Mapping
from typing import Any

from lm.training import metrics


class Position:
  """What a run carries from step to step outside of the devices.

  accumulator: sums since the last train line, and counters since the start.
  best: step and loss of the lowest validation loss; None before the first.
  """

  def __init__(self, progress: Mapping[str, Any] | None = None):
    """Continues after `progress`, of a checkpoint; None: a new run."""
    progress = progress or {}
    self.accumulator = metrics.Accumulator(progress.get('accumulator'))
    self.best: dict[str, float] | None = progress.get('best')
    self._began = time.monotonic() - progress.get('seconds', 0.0)

  def seconds(self) -> float:
    """Seconds of this run, without those between its starts."""
    return time.monotonic() - self._began

  def note_validation(self, step: int, loss: float):
    """Keeps the step and the loss as `best` if no earlier loss is as low."""
    if self.best is None or loss < self.best['loss']:
      self.best = {'step': step, 'loss': loss}

  def progress(
    self, step: int, *, metrics_length: int, samples_length: int
  ) -> dict[str, Any]:
    """JSON for `__init__`; a copy, which later steps do not change.

    Args:
      step: steps done.
      metrics_length, samples_length: bytes of metrics.jsonl and samples.txt,
        to which a run that continues from here cuts them back.
    """
    return {
      'position': step,
      'accumulator': self.accumulator.state(),
      'metrics_length': metrics_length,
      'samples_length': samples_length,
      'seconds': self.seconds(),
      'best': self.best,
    }
