"""Held-out figures of each source of a mixture, beside those of all of them.

A source's bits per byte, weighted by the bytes that they are of, make those of
the run. They are the same of a source that is scored alone, since no passage
sees another; of a sampled bound, but for the samples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data import tally
from lm.evaluation import passages, scoring_methods

# Name in a run's figures, beside the names of all of them.
NAME = 'by_source'
ALL = 'all sources'
# Figure -> what amounts of text have before their names, and what is counted.
_KINDS = {
  'bits_per_byte': ('', 'documents'),
  'suffix_bits_per_byte': ('suffix_', 'windows'),
  'pseudo_bits_per_byte': ('suffix_', 'windows'),
}
_ERROR = 'suffix_standard_error'


@dataclasses.dataclass(frozen=True)
class Row:
  """A source, or ALL. value: bits per byte, None where it has no such text.

  count: of documents or windows.
  """

  name: str
  value: float | None
  error: float | None
  tokens: int
  size: int
  count: int


@dataclasses.dataclass(frozen=True)
class Table:
  """One figure of each source, and last of all together.

  figure: its name. unit: what `count` counts. text: what was scored.
  """

  figure: str
  unit: str
  text: str
  rows: Sequence[Row]


def names(config) -> list[str]:
  """The sources of a mixture, by number; [] where there is only one."""
  found = [name for name, _ in config.data.sources]
  return found if len(found) > 1 else []


def figures(
  sources: Sequence[str],
  scores: Mapping[str, passages.Score],
  *,
  sampled: bool,
) -> dict[str, dict[str, Any]]:
  """Names and values of each source; no bits where a source has no text.

  Args:
    sources: their names, by number.
    scores: those of the figures in question, by name.
    sampled: whether the suffix figure has a standard error.
  """
  found = {name: {} for name in sources}
  for figure, score in scores.items():
    prefix, unit = _KINDS[figure]
    for number, values in enumerate(found.values()):
      part = score.of_source.get(number, passages.Score())
      if part.size:
        values[figure] = part.bits_per_byte()
      if part.size and sampled and figure == 'suffix_bits_per_byte':
        values[_ERROR] = part.standard_error()
      values |= {
        f'{prefix}tokens': part.tokens,
        f'{prefix}bytes': part.size,
        f'{prefix}{unit}': part.passages,
      }
  return found


def tables(found: Mapping[str, Any]) -> list[Table]:
  """Of a run's figures; [] where these are of one source."""
  result, parts = [], found.get(NAME, {})
  for figure, (prefix, unit) in _KINDS.items():
    keys = [f'{prefix}{x}' for x in ('tokens', 'bytes', unit)]
    if not any(figure in values for values in parts.values()):
      continue
    amounts = [[values[key] for key in keys] for values in parts.values()]
    rows = [
      Row(name, values.get(figure), _error(figure, values), *numbers)
      for (name, values), numbers in zip(parts.items(), amounts, strict=True)
    ]
    total = map(sum, zip(*amounts, strict=True))
    rows.append(Row(ALL, found[figure], _error(figure, found), *total))
    result.append(Table(figure, unit, _text(figure, found), rows))
  return result


def lines(found: Mapping[str, Any]) -> list[str]:
  """The tables for a terminal."""
  result = []
  for table in tables(found):
    name = table.figure.removeprefix('suffix_').replace('_', ' ')
    result.append(f'{name} by source: {table.text}')
    for row in table.rows:
      value = '-' if row.value is None else f'{row.value:.3f}'
      line = f'  {value:>6}'
      if any(other.error is not None for other in table.rows):
        error = '-' if row.error is None else f'{row.error:.3f}'
        line += f', standard error {error:>5}'
      line += (
        f'{row.tokens:>12,} tokens{row.size:>13,} bytes'
        f'{row.count:>8,} {table.unit}  {tally.printable(row.name)}'
      )
      result.append(line)
  return result


def _error(figure: str, values: Mapping[str, Any]) -> float | None:
  return values.get(_ERROR) if figure == 'suffix_bits_per_byte' else None


def _text(figure: str, found: Mapping[str, Any]) -> str:
  if figure == 'bits_per_byte':
    return 'test documents'
  halves = 'second halves of test windows'
  if figure == 'pseudo_bits_per_byte':
    return f'{halves}, {scoring_methods.PSEUDO.meaning}'
  return f'{halves}, scorer {found["suffix_scorer"]}'
