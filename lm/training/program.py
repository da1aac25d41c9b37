"""What runs on the devices: a new state and the compiled step of a config.

Training, the measurement of a budget in seconds and benchmarks share it, so
that what is timed is what trains.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from lm import field, models, types
from lm.data import packing, pipeline
from lm.runtime import hosts, sharding
from lm.training import flops, optimizer, step

# Steps of a measurement: run before timing, and timed.
WARMUP, TIMED = 3, 10

FIELDS = field.section(
  microbatches=field.Field(
    1,
    'Parts of the batch over which a step accumulates its gradient.',
    least=1,
    may_change=True,
  ),
  ema=field.Field(
    0.0,
    'Decay of an average of the parameters, which evaluation and samples use '
    'instead of the last ones; 0: none.',
    least=0,
    most=0.999999,  # At 1 the average never moves.
  ),
)

# (state, batch) -> (state, metrics); donates the state that it is given.
CompiledStep = Callable[
  [step.TrainState, types.Batch], tuple[step.TrainState, step.Metrics]
]


@dataclasses.dataclass(frozen=True)
class Program:
  """A config's parts on a mesh.

  config: resolved.
  transform: the optimizer.
  abstract: the state's shapes, dtypes and shardings.
  """

  config: ml_collections.FrozenConfigDict
  objective: types.Objective
  model: types.Model
  mesh: jax.sharding.Mesh
  transform: optax.GradientTransformation
  abstract: step.TrainState

  def init(self) -> step.TrainState:
    """A new state, bit for bit the same at each call."""
    return jax.jit(
      lambda: step.init_state(
        self.model,
        self.transform,
        self.config.seed,
        average=self.config.train.ema > 0,
      ),
      out_shardings=jax.tree.map(lambda x: x.sharding, self.abstract),
    )()

  def compile(self) -> CompiledStep:
    """The train step for this config's batches."""
    train_step = step.make_train_step(
      self.objective,
      self.model,
      self.transform,
      optimizer.make_schedule(self.config),
      microbatches=self.config.train.microbatches,
      ema=self.config.train.ema,
    )
    empty = packing.pack([], self.objective.capacity, self.objective.arrays)
    batch = self.put(packing.stack([empty] * len(self.local_rows())))
    jitted = step.jit_step(train_step, self.mesh, self.abstract)
    return jitted.lower(self.abstract, batch).compile()

  def per_step(self) -> dict[str, int]:
    """`positions` that a step processes, and its model `flops`."""
    data = self.config.data
    return {
      'positions': data.batch_size * data.sequence_length,
      'flops': flops.train_step(self.config, self.objective),
    }

  def local_rows(self) -> Any:
    """The rows of each batch that this process builds."""
    return sharding.local_rows(self.mesh, self.config.data.batch_size)

  def put(self, batch: types.Batch) -> types.Batch:
    """Puts this process's rows on the mesh."""
    return sharding.put_batch(self.mesh, batch, self.config.data.batch_size)

  def batches(
    self, rows: packing.Rows, *, first: int, stop: int
  ) -> Iterator[types.Batch]:
    """Batches `first` to `stop - 1` on the host, as training reads them."""
    data = self.config.data
    return pipeline.iterate(
      rows,
      batch_size=data.batch_size,
      local_rows=self.local_rows(),
      first=first,
      stop=stop,
      threads=data.threads,
      prefetch=data.prefetch,
    )


def make(config, objective, model, mesh) -> Program:
  """The program of a resolved config."""
  transform = optimizer.make(config)
  return Program(
    config=config,
    objective=objective,
    model=model,
    mesh=mesh,
    transform=transform,
    abstract=step.abstract_state(
      model,
      transform,
      mesh,
      models.family(config).rules.sharding,
      average=config.train.ema > 0,
    ),
  )


def time_steps(
  compiled: CompiledStep, state: step.TrainState, batches: Iterable[types.Batch]
) -> tuple[list[float], step.TrainState]:
  """Seconds of each step but the first, and the state after the last.

  As in training, each step is dispatched before the previous one has ended.
  """
  ends: list[float] = []
  waiting = None
  for batch in batches:
    state, metrics = compiled(state, batch)
    if waiting is not None:
      jax.block_until_ready(waiting)
      ends.append(time.perf_counter())
    waiting = metrics
  jax.block_until_ready(waiting)
  ends.append(time.perf_counter())
  return [b - a for a, b in itertools.pairwise(ends)], state


def step_seconds(program: Program, rows: packing.Rows) -> float:
  """Median seconds of a training step, its input included.

  Runs a few steps on a state of its own and discards it.
  """
  batches = program.batches(rows, first=0, stop=WARMUP + TIMED)
  seconds, _ = time_steps(
    program.compile(), program.init(), map(program.put, batches)
  )
  # One process decides: clocks differ, and all must stop at the same step.
  return hosts.decide(lambda: float(np.median(seconds[-TIMED:])))
