"""A trained model from its run folder alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import base as base_config
from lm import models, objectives
from lm.config import compatible, resolve as config_lib
from lm.data import tokenizer as tokenizer_lib
from lm.runtime import sharding
from lm.training import checkpoint, loaded, program


def load(
  workdir: pathlib.Path, overrides: Mapping[str, Any]
) -> loaded.LoadedModel:
  """The latest checkpoint of a run folder whose parameters can be read.

  The optimizer's slots are not: their shapes alone are known here.

  Args:
    overrides: 'section.field' -> value, over the folder's config.

  Raises:
    UserError: no run or no checkpoint there, or a value out of range.
  """
  config = ml_collections.ConfigDict(config_lib.load(workdir))
  # A copy of the tokenizer is in the folder; the source may be gone.
  tokenizer = tokenizer_lib.load(workdir / 'tokenizer')
  config.data.tokenizer = str(workdir / 'tokenizer')
  # The devices here are not those that it was trained on.
  config.mesh = base_config.get_config().mesh
  config.model.attention = None
  for field, value in overrides.items():
    section, name = field.split('.')
    config[section][name] = value
  config = config_lib.resolve(config, given=overrides)
  objective = objectives.make(config, tokenizer)
  # Here: a checkpoint that does not fit the mesh looks like a damaged one.
  compatible.check_model(config, objective)
  mesh = sharding.make_mesh(config)
  model = models.make(config, objective, mesh)
  abstract = program.make(config, objective, model, mesh).abstract
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    params, number = checkpoints.restore_params(abstract)
  finally:
    checkpoints.close()
  return loaded.LoadedModel(
    config=config,
    tokenizer=tokenizer,
    objective=objective,
    model=model,
    mesh=mesh,
    params=params,
    step=number,
  )
