"""Untrained runs to generate with, and prompts for them."""

import dataclasses

import jax
import ml_collections

from lm import models, objectives
from lm.config import check, resolve as config_lib
from lm.data import tokenizer
from lm.generation import strategies
from lm.runtime import sharding
from lm.training import loaded

PROMPTS = ['A', 'Some longer prompt', '', '中文']


def make_run(config, **changes):
  """An untrained model whose most probable next ids vary.

  Args:
    changes: in the objective.
  """
  resolved = config_lib.resolve(config)
  objective = dataclasses.replace(objectives.make(resolved), **changes)
  model = models.make(resolved, objective)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  run = loaded.LoadedModel(
    config=resolved,
    tokenizer=tokenizer.train('bytes', resolved.data.vocab_size, []),
    objective=objective,
    model=model,
    mesh=sharding.make_mesh(resolved, jax.devices()[:1]),
    params=jax.tree.map(lambda x: 3 * x, params),
    step=0,
  )
  return with_settings(
    run, **({'max_tokens': 8} if _continues(objective) else {})
  )


def with_settings(run, **settings):
  """As if they had been given as flags, for what `run.objective` generates."""
  config = ml_collections.ConfigDict(run.config.to_dict())
  config.generate.update(settings)
  given = [f'generate.{name}' for name in settings]
  check.settle(config, run.objective.generates, given)
  frozen = ml_collections.FrozenConfigDict(config)
  return dataclasses.replace(run, config=frozen)


def _continues(objective) -> bool:
  return any(
    'max_tokens' in strategies.STRATEGIES[name].reads
    for name in objective.generates
  )
