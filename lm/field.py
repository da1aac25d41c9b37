"""How a field of a config is declared: once, in the file that reads it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from lm import errors


@dataclasses.dataclass(frozen=True)
class Field:
  """The declaration of a field of a config.

  default: its value in `experiments/base.py`. None where the default depends
    on other fields, or where None is an answer.
  meaning: sentences for people.
  kind: type of its values (default: that of `default`).
  choices: the values that it may have.
  renamed: former name of a choice -> its name today, for the message.
  least, most: the smallest and the largest value; numbers are finite.
  none: what None stands for, for people, where the default is None.
  derive(config): default where the flags leave None; a continued run keeps
    the value that it has.
  where_read: its default where it is read; elsewhere it is None in a resolved
    config, so that no code can read it by mistake.
  neutral: the value that asks for nothing. It may be given anywhere: a flag
    cannot take back what an experiment's file sets.
  read_with: another field -> the values with which alone this one has an
    effect. A name without a dot is of the same section.
  unread(config, value): why it has no effect, and the mend; None where it has.
  check(config): raises UserError where its value does not fit; may be called
    before the defaults are derived.
  may_change: whether it may differ when a run is continued.
  """

  default: Any
  meaning: str
  _: dataclasses.KW_ONLY
  kind: type | None = None
  choices: tuple[str, ...] = ()
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  least: float | None = None
  most: float | None = None
  none: str = ''
  derive: Callable[[Any], Any] | None = None
  where_read: Any = None
  neutral: Any = None
  read_with: Mapping[str, tuple[Any, ...]] = dataclasses.field(
    default_factory=dict
  )
  unread: Callable[[Any, Any], str | None] | None = None
  check: Callable[[Any], None] | None = None
  may_change: bool = False

  def __post_init__(self):
    if self.kind is None:
      object.__setattr__(self, 'kind', type(self.default))

  @property
  def allowed(self) -> str:
    """The values that it may have, for people."""
    if self.choices:
      return ', '.join(self.choices)
    if self.least is None:
      return self.kind.__name__
    if self.most is None:
      return f'at least {self.least}'
    return f'{self.least} to {self.most}'


class Section(dict[str, 'Field | Section']):
  """Fields, and sections, by name; `meaning` is a line for people."""

  meaning: str = ''


def section(meaning: str = '', /, **fields: Field | Section) -> Section:
  """A section of the config, or a part of one without a meaning."""
  made = Section(fields)
  made.meaning = meaning
  return made


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested sections, of fields or of values, to {'section.field': leaf}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{name}.'))
    else:
      flat[prefix + name] = value
  return flat


def get(config, name: str) -> Any:
  """The value of 'section.field'; UserError where there is none."""
  try:
    for part in name.split('.'):
      config = config[part]
  except (KeyError, TypeError):
    raise errors.UserError(
      f'the config has no field {name}; --help=SECTION lists those there are'
    ) from None
  return config


def put(config, name: str, value: Any):
  """Sets 'section.field'."""
  *sections, last = name.split('.')
  for part in sections:
    config = config[part]
  config[last] = value


def check(name: str, value: Any, declared: Field):
  """Raises UserError unless a value is one that a field may have.

  Args:
    name: 'section.field', for the message.
  """
  if value is None and declared.default is None:
    return
  ranged = declared.least is not None
  if declared.choices:
    if value not in declared.choices:
      new = declared.renamed.get(value)
      raise errors.UserError(
        f"unknown {name}='{value}'; choose from {declared.allowed}"
        + (f"; '{value}' is called '{new}' now" if new else '')
      )
  elif not _is_of_type(value, declared.kind) and not (ranged and value is None):
    raise errors.UserError(
      f'{name}={value!r} is not of the type {declared.kind.__name__}; give one '
      + (f'that is, {declared.allowed}' if ranged else 'that is')
    )
  elif ranged and (value is None or not _in_range(value, declared)):
    raise errors.UserError(
      f'{name}={value} is out of range: give {declared.allowed}'
    )


def why_unread(config, name: str, declared: Field) -> str | None:
  """Why a field has no effect beside others, and the mend; None: it has."""
  within = name.rpartition('.')[0]
  for other, values in declared.read_with.items():
    other = other if '.' in other else f'{within}.{other}'
    value = get(config, other)
    if value not in values:
      allowed = ' or '.join(map(repr, values))
      return (
        f'is not read with {other}={value!r}; leave it out, or give {other}='
        f'{allowed}'
      )
  if declared.unread:
    return declared.unread(config, get(config, name))
  return None


def _is_of_type(value: Any, kind: type) -> bool:
  if kind is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if kind is tuple:
    return isinstance(value, tuple | list)
  return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _in_range(value: Any, declared: Field) -> bool:
  # NaN is neither less nor more, and infinity is no JSON.
  fits = math.isfinite(value) and value >= declared.least
  return fits and (declared.most is None or value <= declared.most)
