"""Pairs from Python code: the docstring of a function, and its code."""

import ast
import io
import warnings
from collections.abc import Iterator


def pairs(code: str) -> Iterator[tuple[int, str, str]]:
  """Yields functions that have a docstring, in the order of their lines.

    def double(x):
      '''Twice x.'''  # of any number
      return 2 * x

  line 1, 'Twice x.', 'def double(x):\\n  return 2 * x\\n'

  Decorators and everything on the docstring's lines are left out. Functions
  inside of a yielded one are part of it and are not yielded again.

  Args:
    code: content of a file; one that this Python cannot parse has no functions.

  Yields:
    (line number, docstring, code without it, dedented).
  """
  try:
    with warnings.catch_warnings(action='ignore'):  # About the code.
      tree = ast.parse(code)
  except (SyntaxError, ValueError):
    return
  # Lines as Python counts them, unlike `str.splitlines`.
  lines = io.StringIO(code, newline='').readlines()
  functions = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]
  end = 0
  for node in sorted(functions, key=lambda node: node.lineno):
    docstring = ast.get_docstring(node)
    if node.lineno <= end or not docstring or not _has_lines_of_its_own(node):
      continue
    first = node.body[0]
    kept = lines[node.lineno - 1 : first.lineno - 1]
    kept += lines[first.end_lineno : node.end_lineno]
    dedented = _dedent(kept, lines[node.lineno - 1][: node.col_offset])
    if dedented is not None:
      end = node.end_lineno
      yield node.lineno, docstring, dedented


def _dedent(lines: list[str], indent: str) -> str | None:
  """Removes `indent`; None if a line of a long string has less of it."""
  if any(line.strip() and not line.startswith(indent) for line in lines):
    return None
  return ''.join(line.removeprefix(indent) for line in lines)


def _has_lines_of_its_own(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  """Whether the docstring shares no line with code, and code follows it."""
  if len(node.body) < 2:
    return False
  first, second = node.body[:2]
  return node.lineno < first.lineno and first.end_lineno < second.lineno
