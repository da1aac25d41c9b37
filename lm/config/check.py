"""The one checker of declared fields: their values, and their effect."""

import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments import base
from lm import errors, field, objectives
from lm.generation import strategies
from lm.runtime import hosts

# 'section.field' -> its declaration.
FIELDS: dict[str, field.Field] = field.flatten(base.FIELDS)


def values(config):
  """Checks each field by itself; those that are still to be derived are None.

  Raises:
    UserError: names the field, its value, what is allowed and the mend.
  """
  for name, declared in FIELDS.items():
    field.check(name, field.get(config, name), declared)
  for declared in FIELDS.values():
    if declared.check:
      declared.check(config)
  shown_objectives(config)


def effects(config, given: Collection[str]):
  """Raises UserError for a field of those given that has no effect.

  Args:
    config: resolved.
    given: 'section.field' of those that the user set; for the section
      `generate` see `settle`.
  """
  for name in sorted(given):
    if why := _why_unread(config, name):
      raise errors.UserError(f'{name}={field.get(config, name)!r} {why}')


def settle(
  config, names: Sequence[str], given: Collection[str] | None = None
) -> None:
  """Fills in `config.generate`: defaults where it is read, None elsewhere.

  A field that was given and has no effect is a warning: samples that it leaves
  as they are mislead no comparison.

  Args:
    names: the strategies of the config's objective; a field counts as read
      where one of them reads it.
    given: 'section.field' of the fields that the user set. Other values stem
      from an earlier start and are dropped where they have no effect. None: all
      values were set by the user.
  """
  cfg = config.generate
  known = base.FIELDS['generate']
  read = {x for name in names for x in strategies.STRATEGIES[name].reads}
  for name, declared in known.items():
    if declared.default is not None:
      continue  # It is read when training ends, whatever the objective.
    if not (
      why := _why_unread_by(config, name, [x for x in known if x in read])
    ):
      if cfg[name] is None:
        cfg[name] = declared.where_read
      continue
    own = given is None or f'generate.{name}' in given
    if own and cfg[name] not in (None, declared.neutral):
      warn(f'generate.{name}={cfg[name]!r} {why}')
    cfg[name] = None


@functools.cache  # Once a process: a run may resolve its config twice.
def warn(line: str):
  """Prints a warning on stderr; of several processes, the first does."""
  if hosts.is_first():
    print(f'warning: {line}', file=sys.stderr, flush=True)


def overrides(values: Mapping[str, Any], reads: Collection[str], mode: str):
  """Raises UserError for a field of `evaluate` that is not in `reads`.

  Args:
    values: 'section.field' -> value.
    mode: that reads them, for messages.
  """
  for name, value in values.items():
    if name.split('.')[0] == 'evaluate' and name not in reads:
      raise errors.UserError(
        f'{name}={value!r} is not read by {mode}, which reads '
        f'{", ".join(reads)}; leave it out'
      )


def shown_objectives(config) -> tuple[str, ...]:
  """The names in `show.objectives`; none: the config's own, all: every one.

  Raises:
    UserError: one of them is unknown.
  """
  given = config.show.objectives
  # As a flag, names with commas come as one string.
  names = [n.strip() for entry in given for n in str(entry).split(',')]
  for name in names:
    if name not in ('all', *objectives.OBJECTIVES):
      raise errors.UserError(
        f"show.objectives has an unknown objective '{name}'; choose from "
        f'{", ".join(objectives.OBJECTIVES)}, or all'
      )
  if 'all' in names:
    return tuple(objectives.OBJECTIVES)
  return tuple(dict.fromkeys(names)) or (config.objective.name,)


def _why_unread(config, name: str) -> str | None:
  """Why a field has no effect, and the mend; None where it has."""
  section, *inner = name.split('.')
  if section == 'generate':
    return None
  if section == 'objective' and config.show.objectives:
    return None  # Another one that is shown may read it.
  own, spec = config.objective.name, objectives.spec(config)
  readers = [n for n, s in objectives.OBJECTIVES.items() if name in s.reads]
  if section == 'objective' and len(inner) == 2:
    readers = [inner[0]]
    if spec.unread:
      why = spec.unread(config, name)
      if why or own not in readers:
        return why
  if readers and own not in readers:
    return (
      f'is not read with objective.name={own!r}; leave it out, or give '
      f'objective.name={" or ".join(map(repr, readers))}'
    )
  return field.why_unread(config, name, FIELDS[name])


def _why_unread_by(config, name: str, reads: Sequence[str]) -> str | None:
  """As `_why_unread`, of a field of `generate`.

  Args:
    reads: fields that the strategies of the config read.
  """
  objective = f'objective.name={config.objective.name!r}'
  if not reads:
    return (
      f'is not read: {objective} as it is set generates nothing; leave it out'
    )
  if name not in reads:
    return (
      f'is not read by {objective}, which reads {", ".join(reads)}; leave it '
      'out'
    )
  name = f'generate.{name}'
  return field.why_unread(config, name, FIELDS[name])
