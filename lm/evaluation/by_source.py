"""Held-out figures of each source of a mixture, and of all sources together.

The bits per byte of a run are the mean over its sources, weighted by bytes.
Since no passage sees another, a source scored alone has the same figures, up to
the samples of a sampled bound.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data import tally
from lm.evaluation import passages, scoring_methods

# Key of these figures among the figures of a run.
NAME = 'by_source'
ALL = 'all sources'
# Figure -> prefix of the names of its amounts of text, and what is counted.
_AMOUNTS = {
  'bits_per_byte': ('', 'documents'),
  'suffix_bits_per_byte': ('suffix_', 'windows'),
  'pseudo_bits_per_byte': ('suffix_', 'windows'),
}
_ERROR = 'suffix_standard_error'


@dataclasses.dataclass(frozen=True)
class Row:
  """The figure of a source.

  name: the source, or ALL.
  value: bits per byte; None if the source has no such text.
  error: standard error of the value; None if it is exact.
  tokens: number of scored tokens.
  size: bytes of the scored text.
  count: number of documents or windows.
  """

  name: str
  value: float | None
  error: float | None
  tokens: int
  size: int
  count: int


@dataclasses.dataclass(frozen=True)
class Table:
  """A figure of each source.

  figure: name of the figure.
  counted: what `Row.count` counts.
  text: the text that was scored.
  rows: one per source, and a last one for all sources.
  """

  figure: str
  counted: str
  text: str
  rows: Sequence[Row]


def names(config) -> list[str]:
  """Names of the sources of a mixture, by number; [] for a single source."""
  found = [name for name, _ in config.data.sources]
  return found if len(found) > 1 else []


def figures(
  sources: Sequence[str],
  scores: Mapping[str, passages.Score],
  *,
  sampled: bool,
) -> dict[str, dict[str, Any]]:
  """Returns the figures of each source; sources without text have no bits.

  Args:
    sources: names of the sources, by number.
    scores: name of a figure -> its score, with sums by source.
    sampled: whether the suffix figure is estimated from samples, and so has a
      standard error.
  """
  found = {name: {} for name in sources}
  for figure, score in scores.items():
    prefix, counted = _AMOUNTS[figure]
    for number, values in enumerate(found.values()):
      part = score.by_source.get(number, passages.Score())
      if part.size:
        values[figure] = part.bits_per_byte()
      if part.size and sampled and figure == 'suffix_bits_per_byte':
        values[_ERROR] = part.standard_error()
      values |= {
        f'{prefix}tokens': part.tokens,
        f'{prefix}bytes': part.size,
        f'{prefix}{counted}': part.passages,
      }
  return found


def tables(found: Mapping[str, Any]) -> list[Table]:
  """Builds the tables from the figures of a run; [] for a single source."""
  result, parts = [], found.get(NAME, {})
  for figure, (prefix, counted) in _AMOUNTS.items():
    keys = [f'{prefix}{x}' for x in ('tokens', 'bytes', counted)]
    if not any(figure in values for values in parts.values()):
      continue
    amounts = [[values[key] for key in keys] for values in parts.values()]
    rows = [
      Row(name, values.get(figure), _error(figure, values), *numbers)
      for (name, values), numbers in zip(parts.items(), amounts, strict=True)
    ]
    total = map(sum, zip(*amounts, strict=True))
    rows.append(Row(ALL, found[figure], _error(figure, found), *total))
    result.append(Table(figure, counted, _text(figure, found), rows))
  return result


def lines(found: Mapping[str, Any]) -> list[str]:
  """Formats the tables for a terminal."""
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
        f'{row.count:>8,} {table.counted}  {tally.printable(row.name)}'
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
