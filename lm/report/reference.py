"""The reference of all fields: for `--help`, and as tables in Markdown."""

import difflib
import textwrap
from collections.abc import Iterator

from experiments import base
from lm import errors, field, objectives
from lm.generation import strategies


def overview() -> str:
  """One line per section, then the fields outside of sections."""
  return '\n'.join(_lines('', base.FIELDS))


def describe(name: str) -> str:
  """The fields of a section and a line for each section in it; or one field.

  Raises:
    UserError: there is neither a section nor a field of this name.
  """
  section, _, last = name.rpartition('.')
  spec = objectives.OBJECTIVES.get(last)
  if section == 'objective' and spec and not spec.fields:
    reads = f'; it reads {", ".join(spec.reads)}' if spec.reads else ''
    return f'{name}: no fields of its own{reads}'
  found = _find(name)
  if isinstance(found, field.Field):
    return _describe(name, found)
  return '\n'.join([f'{name}: {found.meaning}', *_lines(f'{name}.', found)])


def markdown(name: str) -> str:
  """The fields of a section as a table in Markdown.

  Raises:
    UserError: as `describe`.
  """
  rows = [('Field', 'Default', 'Values', 'Meaning'), ('---',) * 4]
  for inner, one in _find(name).items():
    if isinstance(one, field.Field):
      cells = _cells(f'{name}.{inner}', one)
      rows.append(
        (f'`{name}.{inner}`', *(c.replace('|', r'\|') for c in cells))
      )
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _find(name: str) -> field.Section | field.Field:
  found = base.FIELDS
  for part in name.split('.'):
    if not isinstance(found, field.Section) or part not in found:
      known = list(_sections('', base.FIELDS))
      names = [*known, *field.flatten(base.FIELDS)]
      near = difflib.get_close_matches(name, names, n=1)
      hint = f'did you mean --help={near[0]}? ' if near else ''
      raise errors.UserError(
        f'unknown section --help={name}; {hint}choose from {", ".join(known)}'
      )
    found = found[part]
  return found


def _sections(prefix: str, section: field.Section) -> Iterator[str]:
  for name, one in section.items():
    if isinstance(one, field.Section):
      yield prefix + name
      yield from _sections(f'{prefix}{name}.', one)


def _lines(prefix: str, section: field.Section) -> Iterator[str]:
  """Its sections, a line each, and then its fields."""
  for name, one in section.items():
    if isinstance(one, field.Section):
      yield f'  {prefix + name:<22} {one.meaning}'
  for name, one in section.items():
    if isinstance(one, field.Field):
      yield _describe(prefix + name, one)


def _describe(name: str, declared: field.Field) -> str:
  default, allowed, meaning = _cells(name, declared)
  text = textwrap.fill(
    f'{meaning} Values: {allowed}.',
    width=78,
    initial_indent=' ' * 6,
    subsequent_indent=' ' * 6,
  )
  return f'  {name} = {default}\n{text}'


def _cells(name: str, declared: field.Field) -> tuple[str, str, str]:
  """Default, values, and meaning with when it has an effect."""
  default = declared.default
  if default is None:
    default = declared.where_read
  text = declared.none if default is None else repr(default)
  conditions = dict(declared.read_with)
  readers = [n for n, s in objectives.OBJECTIVES.items() if name in s.reads]
  if readers:
    conditions['objective.name'] = tuple(readers)
  meaning = declared.meaning
  if conditions:
    needed = [f'{k}={" or ".join(map(repr, v))}' for k, v in conditions.items()]
    meaning += f' Has an effect only with {" and ".join(needed)}.'
  section, _, last = name.rpartition('.')
  known = strategies.STRATEGIES.items()
  names = [strategy for strategy, one in known if last in one.reads]
  if section == 'generate' and 0 < len(names) < len(known):
    meaning += f' Read by the strategies {", ".join(names)}.'
  return text, declared.allowed, meaning
