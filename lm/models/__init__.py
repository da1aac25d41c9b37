"""Model families behind one set of pure functions, by name."""

import jax

from lm import types
from lm.models import transformer

FAMILIES: dict[str, types.Family] = {'transformer': transformer.FAMILY}


def family(config) -> types.Family:
  """The family that `model.family` of a config names."""
  return FAMILIES[config.model.family]


def make(
  config, objective: types.Objective, mesh: jax.sharding.Mesh | None = None
) -> types.Model:
  """Builds the model of a resolved config.

  Args:
    objective: its attention pattern and capacity are read.
    mesh: devices that the model will run on, which need not be attached; their
      platform decides which attention runs. None: kernels run on
      `sharding.make_mesh(config)`, and XLA chooses how to split activations.

  Raises:
    UserError: `model.attention` cannot run on these devices.
  """
  return family(config).make(config, objective, mesh)
