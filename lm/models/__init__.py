"""Model families behind one set of pure functions, by name."""

import jax

from lm import field, types
from lm.models import transformer

FAMILIES: dict[str, types.Family] = {'transformer': transformer.FAMILY}

# Of all families, each once.
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
  """The model of a resolved config.

  Args:
    objective: says who sees whom, and how long rows are.
    mesh: what the model will run on. Its devices need not be here: their
      platform decides what attention runs. None: `sharding.make_mesh(config)`
      for kernels; how activations are split is left to XLA.

  Raises:
    UserError: `model.attention` cannot run there.
  """
  return family(config).make(config, objective, mesh)
