"""Placement of the arrays of a train state and of a batch on the mesh.

Mesh axes: `data` replicates parameters and splits the batch; `fsdp` splits
both; `tensor` splits heads, the MLP's width and the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from lm import errors, field
from lm.runtime import parameter_rules

# Rules in addition to those of a model family, which slots of the optimizer
# share: the scalars of a state, and adafactor's rows, columns and squares of
# vectors.
_STATE = (
  (r'(^|/)(step|count|key|ns_coeffs)$', P()),
  (r'/(v_row|v_col|v)$', P()),
)
BATCH = P(('data', 'fsdp'))

FIELDS = field.section(
  data=field.Field(-1, 'Devices along `data`; -1 takes what is left.'),
  fsdp=field.Field(1, 'Devices along `fsdp`; -1 takes what is left.'),
  tensor=field.Field(1, 'Devices along `tensor`; -1 takes what is left.'),
)


def mesh_shape(config, device_count: int) -> dict[str, int]:
  """Devices along each axis, -1 filled in.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  shape = {name: config.mesh[name] for name in ('data', 'fsdp', 'tensor')}
  for name, size in shape.items():
    if size < 1 and size != -1:
      raise errors.UserError(
        f'mesh.{name}={size}: give a number of devices, or -1 for what is left'
      )
  free = [name for name, size in shape.items() if size == -1]
  if len(free) > 1:
    raise errors.UserError(
      f'mesh.{free[0]}=-1 and mesh.{free[1]}=-1: only one axis can take what '
      'is left; set the other to a number'
    )
  fixed = int(np.prod([size for size in shape.values() if size != -1]))
  if free and device_count % fixed == 0:
    shape[free[0]] = device_count // fixed
  if int(np.prod(list(shape.values()))) != device_count:
    axes = ' x '.join(f'mesh.{n}={config.mesh[n]}' for n in shape)
    raise errors.UserError(
      f'{axes} does not fit {device_count} device(s): the product must be '
      f'{device_count}; set one axis to -1 to take what is left'
    )
  return shape


def make_mesh(
  config, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh over all devices, or over those given.

  Devices are ordered by host, and the last axis changes fastest: `tensor`, and
  then `fsdp`, stay within a host if they fit.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(config, len(devices))
  # Auto: Linen modules carry no sharding of their own.
  return jax.make_mesh(
    tuple(shape.values()),
    tuple(shape),
    axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    devices=devices,
  )


def of_state(
  mesh: jax.sharding.Mesh,
  abstract_state: Any,
  rules: Sequence[tuple[str, P]],
) -> Any:
  """A NamedSharding for every leaf of a train state.

  Args:
    rules: the family's, parameter path -> PartitionSpec.
  """
  specs = parameter_rules.tree_match((*rules, *_STATE), abstract_state)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, P),
  )


def of_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of a batch: rows are split over all axes but `tensor`."""
  return NamedSharding(mesh, BATCH)


def gather(
  tree: Any,
  rules: Sequence[tuple[str, P]],
  axis: str,
  mesh: jax.sharding.Mesh | None,
) -> Any:
  """Gathers parameters along one axis of the mesh, for lookups in them.

  By default XLA splits the rows that are looked up like the table, along the
  width, and everything after them: every device works on the whole batch.

  Args:
    rules: parameter path -> PartitionSpec.
    mesh: None returns `tree` as it is.
  """
  if mesh is None:
    return tree

  def gather_one(path, x):
    # Paths begin with a slash, as they do inside of a state.
    spec = parameter_rules.match(rules, f'/{parameter_rules.path_name(path)}')
    whole = (None if name == axis else name for name in spec)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*whole)))

  return jax.tree_util.tree_map_with_path(gather_one, tree)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of an array with a copy on every device."""
  return NamedSharding(mesh, P())


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """Sorted indices of the global batch's rows that this process must build."""
  indices = of_batch(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in indices.values()]
  return np.unique(np.concatenate(rows))


def put_batch(mesh: jax.sharding.Mesh, batch: Any, batch_size: int) -> Any:
  """Builds global arrays, split over the mesh, from the host's `local_rows`."""
  sharding = of_batch(mesh)
  place = np.full(batch_size, -1)
  rows = local_rows(mesh, batch_size)
  place[rows] = np.arange(len(rows))

  def put(local):
    shape = (batch_size, *local.shape[1:])
    return jax.make_array_from_callback(
      shape, sharding, lambda index: local[place[index[0]]]
    )

  return jax.tree.map(put, batch)
