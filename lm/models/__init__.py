"""Model families behind one set of pure functions, by name."""

import jax

from lm import field, types
from lm.models import transformer

FAMILIES: dict[str, types.Family] = {'transformer': transformer.FAMILY}

# Architectures of all families, without repetition.
ARCHITECTURES = tuple(
  {name: 0 for one in FAMILIES.values() for name in one.architectures}
)

FIELDS = field.section(
  family=field.Field(
    'transformer', 'Family of models.', choices=tuple(FAMILIES)
  ),
  **{name: f for one in FAMILIES.values() for name, f in one.fields.items()},
)


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
