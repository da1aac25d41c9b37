"""What fits together: objective, model family, data, rows and devices."""

from collections.abc import Mapping

import jax

from lm import errors, field, models, objectives, types
from lm.evaluation import scoring_methods
from lm.runtime import sharding


def compatible(config, spec: types.ObjectiveSpec, family: types.Family):
  """Raises UserError unless a family can train an objective on the data.

  Args:
    config: its model resolved.
  """
  name, architecture = config.objective.name, config.model.architecture
  if architecture not in spec.architectures:
    raise errors.UserError(
      f"objective.name='{name}' trains model.architecture="
      f"{' or '.join(map(repr, spec.architectures))}, not '{architecture}'; "
      'change one, or leave model.architecture out'
    )
  if architecture not in family.architectures:
    raise errors.UserError(
      f"model.family='{config.model.family}' builds model.architecture="
      f"{' or '.join(map(repr, family.architectures))}, not '{architecture}'; "
      'change one'
    )
  if config.data.cross_document_attention and spec.attention != ('causal',):
    raise errors.UserError(
      'data.cross_document_attention=True makes a row one causal segment, '
      f"which is not for objective.name='{name}'; leave it out"
    )
  _check_data(config, spec)
  family.check(config)
  spec.check(config)


def check_attention(config, objective: types.Objective, family: types.Family):
  """Raises UserError unless a family obeys what an objective asks for."""
  if objective.attention not in family.attention:
    name = config.objective.name
    raise errors.UserError(
      f"objective.name='{name}' needs {objective.attention} attention, but "
      f"model.family='{config.model.family}' has "
      f'{" or ".join(family.attention)}; change one'
    )


def check_model(config, objective: types.Objective):
  """Raises UserError unless the devices can run and split the model."""
  family = models.family(config)
  family.check_devices(config, objective, jax.devices()[0])
  shape = sharding.mesh_shape(config, jax.device_count())
  for name, axis in family.splits.items():
    size = field.get(config, name)
    if size % shape[axis]:
      raise errors.UserError(
        f'{name}={size} is not divisible by mesh.{axis}={shape[axis]}; change '
        'one'
      )


def check_scoring(config, objective: types.Objective):
  """Raises UserError unless text fits rows, which the devices can split."""
  check_model(config, objective)
  if objective.scorer != scoring_methods.NONE:
    scoring_methods.limits(scoring_methods.METHODS[objective.scorer], objective)
  shape = sharding.mesh_shape(config, jax.device_count())
  _check_rows(config, 'evaluate.batch_size', shape)


def check_training(config, objective: types.Objective):
  """Raises UserError unless the mesh splits training batches, too."""
  check_scoring(config, objective)
  shape = sharding.mesh_shape(config, jax.device_count())
  _check_rows(config, 'data.batch_size', shape)
  size, parts = config.data.batch_size, config.train.microbatches
  shards = shape['data'] * shape['fsdp']
  if size % (parts * shards):
    raise errors.UserError(
      f'data.batch_size={size} is not divisible by train.microbatches={parts} '
      f'x {shards} device(s); change one'
    )


def _check_data(config, spec: types.ObjectiveSpec):
  name, column = config.objective.name, config.data.target_column
  if spec.data == 'pairs' and column is None:
    raise errors.UserError(
      f"objective.name='{name}' is trained on pairs, but data.target_column is "
      'not given; name the column that holds their targets'
    )
  if spec.data == 'text' and column is not None:
    of_pairs = [
      n for n, s in objectives.OBJECTIVES.items() if s.data == 'pairs'
    ]
    raise errors.UserError(
      f"objective.name='{name}' is trained on text, but data.target_column="
      f'{column!r} makes pairs; leave it out, or give objective.name='
      f'{" or ".join(map(repr, of_pairs))}'
    )


def _check_rows(config, name: str, shape: Mapping[str, int]):
  size, shards = field.get(config, name), shape['data'] * shape['fsdp']
  if size % shards:
    raise errors.UserError(
      f'{name}={size} is not divisible by the {shards} devices that share a '
      f'batch (mesh.data={shape["data"]} x mesh.fsdp={shape["fsdp"]}); change '
      'one'
    )
