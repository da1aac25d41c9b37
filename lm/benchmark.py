"""Measures the speed of a config: train step, input pipeline and decoding.

Prepares the data if needed; needs no run folder.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Collection
from typing import Any

import jax

from lm import models, objectives
from lm.config import compatible, resolve as config_lib
from lm.data import packing, pipeline, prepare
from lm.generation import strategies
from lm.runtime import hosts, sharding
from lm.training import flops, inputs, loaded, program as program_lib, step

_TIMED_STEPS = 20
# Number of batches of real rows that the timed steps cycle through.
_BATCHES = 4
_PIPELINE_SECONDS = 2.0
_TIMED_GENERATIONS = 2


def run(config, *, given: Collection[str] | None = None):
  """Prints the figures; the last line on stdout is JSON.

  Args:
    config: config to measure, not yet resolved.
    given: see `resolve.resolve`.

  Raises:
    UserError: there is a mistake in the config or the data.
  """
  # The time of compilation is measured, so nothing may come from the cache.
  jax.config.update('jax_enable_compilation_cache', False)
  config, objective = config_lib.resolve_with_objective(config, given=given)
  compatible.check_training(config, objective)
  prepared = inputs.find_prepared(
    lambda: prepare.prepare(config.data, report=print)
  )
  objective = objectives.make(config, prepared.tokenizer())
  mesh = sharding.make_mesh(config)
  model = models.make(config, objective, mesh)
  program = program_lib.make(config, objective, model, mesh)
  rows = packing.training_rows(config, prepared.train(), objective)
  figures, state = _time_step(program, rows)
  figures |= _time_pipeline(program, rows)
  figures |= _time_decoding(program, prepared, state)
  figures |= _describe(program)
  if hosts.is_first():
    print(_table(figures))
    print(json.dumps(figures))


def _time_step(
  program: program_lib.Program, rows: packing.Rows
) -> tuple[dict[str, Any], step.TrainState]:
  """Times the compiled step alone, with batches already on the device."""
  began = time.perf_counter()
  compiled = program.compile()
  compile_seconds = time.perf_counter() - began
  batches = list(
    map(program.put, program.batches(rows, first=0, stop=_BATCHES))
  )
  count = program_lib.WARMUP + _TIMED_STEPS
  seconds, state = program_lib.time_steps(
    compiled, program.init(), itertools.islice(itertools.cycle(batches), count)
  )
  median = statistics.median(seconds[-_TIMED_STEPS:])
  data = program.config.data
  per_step = flops.train_step(program.config, program.objective)
  figures = {
    'tokens_per_second': data.batch_size * data.sequence_length / median,
    'step_seconds': median,
    'compile_seconds': compile_seconds,
    **_memory(compiled),
    'flops_per_step': per_step,
  }
  utilization = flops.utilization(
    per_step / median, program.mesh.devices.ravel()
  )
  if utilization is not None:
    figures['model_flops_utilization'] = utilization
  return figures, state


def _memory(compiled) -> dict[str, Any]:
  """Returns the peak memory of one device, in bytes, and the figure's source.

  device: measured by the allocator, since the start of the process.
  xla: if the allocator has no statistics, as on CPU, the compiler's sum of the
    step's arguments, outputs and temporaries, with the donated state counted
    once.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [one['peak_bytes_in_use'] for one in stats if one]
  if peaks:
    return {'peak_memory_bytes': max(peaks), 'peak_memory_source': 'device'}
  known = compiled.memory_analysis()
  total = (
    known.argument_size_in_bytes
    + known.output_size_in_bytes
    - known.alias_size_in_bytes
    + known.temp_size_in_bytes
  )
  return {'peak_memory_bytes': total, 'peak_memory_source': 'xla'}


def _time_pipeline(
  program: program_lib.Program, rows: packing.Rows
) -> dict[str, Any]:
  """Times batches built one after the other in this thread, on the host."""
  data = program.config.data
  local = program.local_rows()
  batches = pipeline.iterate(
    rows,
    batch_size=data.batch_size,
    local_rows=local,
    first=0,
    stop=2**31,
    threads=0,
    prefetch=1,
  )
  next(batches)  # plans the epoch, opens the files
  began, count = time.perf_counter(), 0
  while (seconds := time.perf_counter() - began) < _PIPELINE_SECONDS:
    next(batches)
    count += 1
  positions = count * len(local) * data.sequence_length
  return {'pipeline_tokens_per_second': positions / seconds}


def _time_decoding(
  program: program_lib.Program, prepared: prepare.Prepared, state
) -> dict[str, Any]:
  """Times decoding of `generate.batch_size` samples, with their prompts.

  Counts computed ids: each row counts as many as the longest one, even if its
  document ended earlier.

  Returns:
    The figures; {} if the objective does not sample text.
  """
  config = program.config
  sampled = [
    strategies.STRATEGIES[name]
    for name in program.objective.generates
    if 'seed' in strategies.STRATEGIES[name].reads
  ]
  if not sampled:
    return {}
  strategy = sampled[0]
  completer = strategy.make(
    loaded.LoadedModel(
      config=config,
      tokenizer=prepared.tokenizer(),
      objective=program.objective,
      model=program.model,
      mesh=program.mesh,
      params=state.evaluated,
      step=int(state.step),
    )
  )
  size = config.generate.batch_size
  # The shortest possible prompt.
  prompts = [completer.encode(strategy.marks[0])] * size
  samples = range(size)
  completer.batch(prompts, samples)  # compiles
  began, tokens = time.perf_counter(), 0
  for _ in range(_TIMED_GENERATIONS):
    done = completer.batch(prompts, samples)
    tokens += size * max(one.tokens + (one.stop == 'end') for one in done)
  seconds = time.perf_counter() - began
  return {
    'decode_tokens_per_second': tokens / seconds,
    'decode_batch_size': size,
  }


def _describe(program: program_lib.Program) -> dict[str, Any]:
  params = jax.tree.leaves(program.abstract.params)
  config = program.config
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'parameters': sum(math.prod(x.shape) for x in params),
    'sequence_length': config.data.sequence_length,
    'batch_size': config.data.batch_size,
    'dtype': config.model.dtype,
  }


def _table(figures: dict[str, Any]) -> str:
  """Formats the figures for a terminal."""
  share = ''
  if 'model_flops_utilization' in figures:
    share = f', {figures["model_flops_utilization"]:.1%} of the peak'
  memory = {'device': 'measured', 'xla': "by the compiler's count"}
  decoding = ''
  if 'decode_tokens_per_second' in figures:
    decoding = (
      f'\n  decoding    {figures["decode_tokens_per_second"]:,.0f} tokens/s, '
      f'{figures["decode_batch_size"]} samples at a time'
    )
  return (
    f'{figures["parameters"]:,} parameters in {figures["dtype"]} on '
    f'{figures["devices"]} x {figures["device"]}\n'
    f'  train step  {figures["step_seconds"]:.4g} s, '
    f'{figures["tokens_per_second"]:,.0f} tokens/s{share}\n'
    f'  compiling   {figures["compile_seconds"]:.1f} s\n'
    f'  memory      {figures["peak_memory_bytes"] / 2**20:,.0f} MiB a device, '
    f'{memory[figures["peak_memory_source"]]}\n'
    f'  input       {figures["pipeline_tokens_per_second"]:,.0f} tokens/s in '
    f'one thread{decoding}'
  )
