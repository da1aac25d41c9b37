"""Loads a trained model from its run folder."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import base as base_config
from lm import field, models, objectives
from lm.config import compatible, resolve as config_lib
from lm.data import tokenizer as tokenizer_lib
from lm.runtime import sharding
from lm.training import checkpoint, loaded, program


def load(
  workdir: pathlib.Path, overrides: Mapping[str, Any]
) -> loaded.LoadedModel:
  """Loads the latest checkpoint of a run folder whose parameters are readable.

  The state of the optimizer is not loaded.

  Args:
    workdir: run folder.
    overrides: 'section.field' -> value, overrides the folder's config.

  Raises:
    UserError: there is no run or no checkpoint, or a value is out of range.
  """
  config = ml_collections.ConfigDict(config_lib.load(workdir))
  # The folder holds a copy of the tokenizer; the original may be gone.
  tokenizer = tokenizer_lib.load(workdir / 'tokenizer')
  config.data.tokenizer = str(workdir / 'tokenizer')
  # The run may have been trained on other devices.
  config.mesh = base_config.get_config().mesh
  config.model.attention = None
  for name, value in overrides.items():
    field.put(config, name, value)
  config = config_lib.resolve(config, given=overrides)
  objective = objectives.make(config, tokenizer)
  # Before restoring, where a mesh that does not fit looks like a damaged file.
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
