"""Real runs: `run.py` as a process that can be held, killed and compared."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from helpers.environment import QUICKLY_COMPILED, ROOT

from lm import models, objectives
from lm.config import resolve as config_lib
from lm.runtime import sharding
from lm.training import checkpoint, program, step

# What may differ between two runs of the same config.
_EXEMPT = (
  *('seconds', 'seconds_to_first_step'),
  *('tokens_per_second', 'model_flops_utilization'),
)
# Seconds; they matter only where something fails.
_PATIENCE = 600.0

_EXPERIMENT = '''
"""A tiny run. Its batches come slowly, and not at all at batch $HOLD_AT.

Once several processes have agreed on where to stop, $HELD.agreed exists.
"""

import os
import pathlib
import time

from experiments import base
from lm.data import pipeline
from lm.runtime import signals

_iterate = pipeline.iterate
_answer = signals._Agreement._answer


def _slowly(rows, *, first, **settings):
  batches = _iterate(rows, first=first, **settings)
  for number, batch in enumerate(batches, first):
    held = os.environ.get('HELD', '')
    if held and number == int(os.environ['HOLD_AT']):
      pathlib.Path(held).touch()
      while os.path.exists(held):
        time.sleep(0.01)
    time.sleep(0.01)
    yield batch


def _answer_and_note(agreement, number):
  _answer(agreement, number)
  pathlib.Path(os.environ['HELD'] + '.agreed').touch()


pipeline.iterate = _slowly
if 'HELD' in os.environ:
  signals._Agreement._answer = _answer_and_note


def get_config():
  config = base.get_config()
  config.data.source = 'files'
  config.data.path = {path!r}
  config.data.sources = {sources!r}
  config.data.cleaning.rules = ()
  config.data.directory = {prepared!r}
  config.data.tokenizer = 'bytes'
  config.data.sequence_length = 32
  config.data.batch_size = 4
  config.model.num_layers = 1
  config.model.width = 32
  config.model.num_heads = 4
  config.model.mlp_width = 64
  # Randomness of a step must come back too.
  config.model.dropout = 0.1
  config.optimizer.warmup_steps = 2
  config.train.steps = 40
  config.train.log_every = 3
  config.train.evaluate_every = 8
  config.train.checkpoint_every = 12
  config.evaluate.batches = 2
  config.evaluate.batch_size = 16
  config.evaluate.baselines = False
  config.generate.max_tokens = 4
  config.generate.samples = 1
  return config
'''


@dataclasses.dataclass(frozen=True)
class Launcher:
  """Starts `run.py` with the tiny experiment, on one CPU device by default.

  environment: variables besides those of this process.
  command: see `commands.server`; runs what need not be held or killed in less
    time, since nothing is imported again.
  """

  experiment: pathlib.Path
  compiled: str
  environment: dict[str, str] = dataclasses.field(default_factory=dict)
  command: Callable | None = None

  @classmethod
  def write(
    cls,
    folder: pathlib.Path,
    corpus: pathlib.Path,
    compiled: str,
    *,
    sources: Sequence[tuple[str, float]] = (),
    command: Callable | None = None,
  ) -> 'Launcher':
    """Writes the experiment's file into `folder`.

    sources: what is mixed instead of reading `corpus`.
    """
    experiment = folder / 'tiny.py'
    experiment.write_text(
      _EXPERIMENT.format(
        path=None if sources else str(corpus),
        sources=tuple(sources),
        prepared=str(folder / 'prepared'),
      )
    )
    return cls(experiment, compiled, command=command)

  def start(
    self,
    workdir: pathlib.Path,
    *flags: str,
    hold_at: int | None = None,
    process: int = 0,
    devices: int = 1,
  ) -> subprocess.Popen:
    """Starts a run; `hold_at` is the step after which it waits, see `held`."""
    environment = {
      **os.environ,
      **self.environment,
      'JAX_COMPILATION_CACHE_DIR': self.compiled,
      'XLA_FLAGS': QUICKLY_COMPILED,
    }
    if devices > 1:
      count = f'--xla_force_host_platform_device_count={devices}'
      environment['XLA_FLAGS'] += f' {count}'
    if hold_at is not None:
      path = held(workdir, process)
      environment |= {'HOLD_AT': str(hold_at), 'HELD': str(path)}
    return subprocess.Popen(
      [sys.executable, 'run.py', *self._flags(workdir), *flags],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, workdir: pathlib.Path, *flags: str) -> tuple[int, str, str]:
    """A run from start to end: exit code, stdout, stderr."""
    if self.command:
      return self.command(*self._flags(workdir), *flags)
    return finish(self.start(workdir, *flags))

  def _flags(self, workdir: pathlib.Path) -> list[str]:
    return [f'--config={self.experiment}', f'--workdir={workdir}']


def held(workdir: pathlib.Path, process: int = 0) -> pathlib.Path:
  """The file that a held process makes and that it waits to see removed."""
  return workdir.with_name(f'{workdir.name}.held{process}')


def agreed(workdir: pathlib.Path, process: int = 0) -> pathlib.Path:
  """The file of a process that knows after which step all will stop."""
  path = held(workdir, process)
  return path.with_name(f'{path.name}.agreed')


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
  """Waits for the end: exit code, stdout, stderr."""
  out, err = process.communicate(timeout=_PATIENCE)
  return process.returncode, out, err


def kill(process: subprocess.Popen) -> tuple[int, str, str]:
  """kill -9, of a process that must still be running."""
  process.send_signal(signal.SIGKILL)
  result = finish(process)
  assert result[0] == -signal.SIGKILL, result
  return result


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]):
  """Polls; fails if the process ends first."""
  deadline = time.monotonic() + _PATIENCE
  while not condition():
    if process.poll() is not None:
      raise AssertionError(f'ended too early: {process.communicate()}')
    assert time.monotonic() < deadline
    time.sleep(0.002)


def wait_until_held(
  process: subprocess.Popen, workdir: pathlib.Path, number: int = 0
):
  """Waits until the process `number` of a run has come to its `hold_at`."""
  wait_until(process, held(workdir, number).exists)


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """All of metrics.jsonl, without the figures that depend on the clock.

  Raises:
    ValueError: a line that is not JSON, or half a line.
  """
  text = (workdir / 'metrics.jsonl').read_text('utf-8')
  whole = [json.loads(line) for line in text.splitlines()]
  if not text.endswith('\n'):
    raise ValueError('half a line at the end')
  return [{k: v for k, v in x.items() if k not in _EXEMPT} for x in whole]


def steps(workdir: pathlib.Path, split: str) -> list[int]:
  """Steps of the whole lines of a split, in order; also while it is written."""
  path = workdir / 'metrics.jsonl'
  text = path.read_text('utf-8') if path.exists() else ''
  whole = [json.loads(line) for line in text.split('\n')[:-1]]
  return [line['step'] for line in whole if line['split'] == split]


def saved(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints in a run folder, sorted."""
  folder = workdir / 'checkpoints'
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def final_state(
  workdir: pathlib.Path, devices: Sequence[jax.Device] | None = None
) -> step.TrainState:
  """The latest state of a run, on one device of this process, or on those."""
  config = ml_collections.ConfigDict(config_lib.load(workdir))
  config.mesh.update({'fsdp': 1, 'tensor': 1})
  objective = objectives.make(config)
  model = models.make(config, objective)
  mesh = sharding.make_mesh(config, devices or jax.devices()[:1])
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    abstract = program.make(config, objective, model, mesh).abstract
    return checkpoints.restore_latest(abstract)[0]
  finally:
    checkpoints.close()


def assert_same_state(state: step.TrainState, other: step.TrainState):
  """Equal to the bit, and of one structure."""
  paths = jax.tree_util.tree_leaves_with_path(state)
  others = jax.tree.leaves(other)
  assert len(paths) == len(others) > 20
  for (path, leaf), expected in zip(paths, others, strict=True):
    assert leaf.dtype == expected.dtype
    assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes(), path
  assert jax.tree.structure(state) == jax.tree.structure(other)
