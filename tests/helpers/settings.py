"""Settings as text, for tables of cases: one line each, or two."""

import ast
from typing import Any


def parse(text: str) -> dict[str, Any]:
  """'a.b=1 c.d="x"' -> {'a.b': 1, 'c.d': 'x'}; values without blanks."""
  pairs = (setting.partition('=') for setting in text.split())
  return {name: ast.literal_eval(value) for name, _, value in pairs}


def table(text: str) -> list[list[str]]:
  """The cells of each row; they are divided by ->, also on a new line."""
  rows = text.strip().replace('\n ', ' ').splitlines()
  return [[cell.strip() for cell in row.split('->')] for row in rows]
