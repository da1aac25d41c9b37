"""Averaged weights: their formula, who uses them, and that they come back."""

import pathlib
import shutil

import jax
import ml_collections
import numpy as np
import optax
import pytest
from helpers import runs

from lm import errors, evaluate, load_run, models, objectives, train, types
from lm.config import resolve as config_lib
from lm.data import packing, prepare
from lm.evaluation import validation as validation_lib
from lm.training import step

STEPS = 6


@pytest.fixture
def config(config) -> ml_collections.ConfigDict:
  config.model.num_layers = 1
  config.model.dropout = 0.1
  config.train.steps = STEPS
  config.train.log_every = 1
  config.train.evaluate_every = 3
  config.train.checkpoint_every = 3
  # Above the warmup of the decay only from its tenth step on: both are used.
  config.train.ema = 0.3
  config.optimizer.learning_rate = 0.03
  config.generate.samples = 0
  return config


def test_an_average_follows_its_formula(config):
  """By hand, from the parameters after each step."""
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  model = models.make(config, objective)
  transform = optax.sgd(1.0)
  ids = np.random.default_rng(0).integers(270, 520, 32)
  example = objective.corrupt(types.Record(ids, ids), None)[0]
  batch = packing.stack([packing.pack([example], objective.capacity)])
  compiled = jax.jit(
    step.make_train_step(
      objective,
      model,
      transform,
      optax.constant_schedule(1.0),
      microbatches=1,
      ema=config.train.ema,
    )
  )
  state = jax.jit(lambda: step.init_state(model, transform, 0, average=True))()
  expected = jax.device_get(jax.tree.leaves(state.params))
  for decay in (0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3):
    state, _ = compiled(state, batch)
    params = jax.device_get(jax.tree.leaves(state.params))
    expected = [
      decay * old + (1 - decay) * new
      for old, new in zip(expected, params, strict=True)
    ]
    assert state.evaluated is state.average
    for x, y in zip(jax.tree.leaves(state.average), expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_without_an_average_the_parameters_are_evaluated(config):
  model = models.make(
    config_lib.resolve(config), objectives.make(config_lib.resolve(config))
  )
  state = jax.jit(lambda: step.init_state(model, optax.sgd(1.0), 0))()
  assert state.average == {}
  assert state.evaluated is state.params


def test_a_run_evaluates_its_average_and_resumes_it(config, tmp_path):
  workdir, other = tmp_path / 'run', tmp_path / 'stopped'
  train.run(config, workdir, command='')
  state = runs.final_state(workdir, jax.devices())
  assert int(state.step) == STEPS

  # Stopped after its first checkpoint, and continued.
  shutil.copytree(workdir, other)
  shutil.rmtree(other / 'checkpoints' / str(STEPS))
  written = (other / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
  assert b'"final"' in written[-1]
  (other / 'metrics.jsonl').write_bytes(b''.join(written[:-1]))
  train.run(config, other, command='')
  runs.assert_same_state(runs.final_state(other, jax.devices()), state)
  assert runs.lines(other) == runs.lines(workdir)

  # The loss on validation is that of the average, and so is what is loaded.
  run = load_run.load(workdir, {})
  with pytest.raises(errors.UserError, match=r'num_heads=4.*mesh\.tensor=8'):
    load_run.load(workdir, {'mesh.tensor': 8})
  for x, y in zip(
    *map(jax.tree.leaves, (run.params, state.average)), strict=True
  ):
    np.testing.assert_array_equal(x, y)
  split = load_run.load(workdir, {'mesh.fsdp': 4, 'mesh.tensor': 2}).params
  for x, y in zip(*map(jax.tree.leaves, (split, run.params)), strict=True):
    np.testing.assert_array_equal(x, y)
  assert not all(x.is_fully_replicated for x in jax.tree.leaves(split))
  validation = validation_lib.Validation(
    prepare.load(pathlib.Path(config.data.directory)).held_out('validation'),
    run.objective,
    run.model,
    run.mesh,
    run.config,
  )
  written = [x for x in runs.lines(workdir) if x['split'] == 'validation'][-1]
  assert validation(state.average)['loss'] == pytest.approx(written['loss'])
  assert abs(validation(state.params)['loss'] - written['loss']) > 1e-3
  figures = evaluate.score(run, workdir / 'held_out')
  final = runs.lines(workdir)[-1]
  assert figures['bits_per_byte'] == pytest.approx(final['bits_per_byte'])
