"""Components that `objective.mixture.components` names."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from lm import errors, field, objectives
from lm.data import tokenizer

MODES = {
  '': None,
  'R': tokenizer.MODE_R,
  'S': tokenizer.MODE_S,
  'X': tokenizer.MODE_X,
}


def _denoiser(share: float, mode: str, mean: float, rate: float) -> tuple:
  return (share, mode, 'span', (('mean', mean), ('rate', rate)))


# Table 1 of Tay et al. 2022, with its share of 20 % for S; shares are equal
# within R and within X.
UL2 = (
  _denoiser(0.2, 'R', 3.0, 0.15),
  _denoiser(0.2, 'R', 8.0, 0.15),
  _denoiser(0.1, 'X', 3.0, 0.5),
  _denoiser(0.1, 'X', 8.0, 0.5),
  _denoiser(0.1, 'X', 64.0, 0.15),
  _denoiser(0.1, 'X', 64.0, 0.5),
  (0.2, 'S', 'prefix', ()),
)


@dataclasses.dataclass(frozen=True)
class Component:
  """A component as a config names it.

  share: share of the raw text, relative to those of the other components.
  mode: a key of MODES.
  objective: name of its objective.
  fields: (name, value) of the fields of the objective's section to override.
  """

  share: float
  mode: str
  objective: str
  fields: tuple[tuple[str, Any], ...]

  @property
  def name(self) -> str:
    """The objective and its overridden values, as in span_3_0.15."""
    values = [
      f'{value:g}' if isinstance(value, float) else str(value)
      for _, value in self.fields
    ]
    return '_'.join([self.objective, *values])

  def config(self, config) -> ml_collections.ConfigDict:
    """The config of this objective alone, its rows without the mode's token."""
    alone = ml_collections.ConfigDict(config.to_dict())
    alone.objective.name = self.objective
    alone.data.sequence_length -= bool(self.mode)
    for name, value in self.fields:
      alone.objective[self.objective][name] = value
    return alone

  def check_fields(self, number: int):
    """Raises UserError unless its objective has fields of such values.

    Args:
      number: its place in the mixture, for messages.
    """
    declared = objectives.OBJECTIVES[self.objective].fields
    for name, value in self.fields:
      path = f'objective.{self.objective}.{name}'
      if name not in declared:
        listed = ', '.join(declared) or 'none'
        raise component_error(
          number, f'there is no field {path}; it has {listed}'
        )
      try:
        field.check(path, value, declared[name])
      except errors.UserError as error:
        raise component_error(number, str(error)) from None


def read(config) -> tuple[Component, ...]:
  """The components of `objective.mixture.components`; None stands for UL2's.

  Raises:
    UserError: the value does not have the form that `mixture.FIELDS` states.
  """
  given = config.objective.mixture.components
  if given is None:
    given = UL2
  if not isinstance(given, Sequence) or not given:
    raise errors.UserError(
      f'objective.mixture.components={given!r} names none; give tuples (share, '
      "mode or '', objective, fields), or leave it out for UL2's"
    )
  return tuple(_component(number, entry) for number, entry in enumerate(given))


def names(found: Sequence[Component]) -> list[str]:
  """Distinct names; components that differ only in mode have numbers."""
  distinct: list[str] = []
  for component in found:
    name, number = component.name, 2
    while name in distinct:
      name, number = f'{component.name}_{number}', number + 1
    distinct.append(name)
  return distinct


def component_error(number: int, message: str) -> errors.UserError:
  """An error that names the component by its index."""
  return errors.UserError(f'objective.mixture.components[{number}]: {message}')


def why_unread(config, name: str) -> str | None:
  """Why no component reads 'objective.SECTION.field', see ObjectiveSpec.

  Raises:
    UserError: a field that a component sets has no effect beside its others.
  """
  _, section, last = name.split('.')
  found = read(config)
  own = [component for component in found if component.objective == section]
  if section != config.objective.name and not any(
    last not in dict(component.fields) for component in own
  ):
    return (
      'is not read: each of objective.mixture.components has its own or is of '
      'another objective; leave it out, or give it there'
    )
  for number, component in enumerate(found):
    _check_read(number, component, component.config(config))
  return None


def _check_read(number: int, component: Component, config):
  declared = objectives.OBJECTIVES[component.objective].fields
  for name, value in component.fields:
    path = f'objective.{component.objective}.{name}'
    if why := field.why_unread(config, path, declared[name]):
      raise component_error(number, f'{path}={value!r} {why}')


def _component(number: int, entry: Any) -> Component:
  try:
    share, mode, name, fields = entry
    pairs = tuple((key, value) for key, value in fields)
  except (TypeError, ValueError):
    raise component_error(
      number, f"{entry!r} is not (share, mode or '', objective, fields)"
    ) from None
  if isinstance(share, bool) or not isinstance(share, int | float):
    raise component_error(number, f'the share {share!r} is no number')
  if not 0 < share < float('inf'):
    raise component_error(
      number, f'the share {share} is out of range: give above 0'
    )
  choices = [name for name in objectives.OBJECTIVES if name != 'mixture']
  for kind, value, allowed in (
    ('mode', mode, list(MODES)),
    ('objective', name, choices),
  ):
    if value not in allowed:
      listed = ', '.join(choice or "''" for choice in allowed)
      raise component_error(
        number, f"unknown {kind} '{value}'; choose from {listed}"
      )
  return Component(float(share), mode, name, pairs)
