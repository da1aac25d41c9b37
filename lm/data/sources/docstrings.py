"""Pairs out of Python code: what a function's docstring says, and its code."""

import ast
import io
import warnings
from collections.abc import Iterator


def pairs(code: str) -> Iterator[tuple[int, str, str]]:
  """Functions that have a docstring, in the order of their lines.

    def double(x):
      '''Twice x.'''  # of any number
      return 2 * x

  line 1, 'Twice x.', 'def double(x):\\n  return 2 * x\\n'

  Decorators are left out, and so is whatever stands in the docstring's lines.
  Functions inside of one that is told are part of it, and are not told again.

  Args:
    code: of a file; one that this Python cannot parse has no functions.

  Yields:
    (line number, docstring, code without it, dedented).
  """
  try:
    with warnings.catch_warnings(action='ignore'):  # Of code that is not ours.
      tree = ast.parse(code)
  except (SyntaxError, ValueError):
    return
  # As Python counts lines, which are not those of `str.splitlines`.
  lines = io.StringIO(code, newline='').readlines()
  functions = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]
  told = 0
  for node in sorted(functions, key=lambda node: node.lineno):
    docstring = ast.get_docstring(node)
    if node.lineno <= told or not docstring or not _has_lines_of_its_own(node):
      continue
    said = node.body[0]
    kept = lines[node.lineno - 1 : said.lineno - 1]
    kept += lines[said.end_lineno : node.end_lineno]
    dedented = _dedent(kept, lines[node.lineno - 1][: node.col_offset])
    if dedented is not None:
      told = node.end_lineno
      yield node.lineno, docstring, dedented


def _dedent(lines: list[str], indent: str) -> str | None:
  """Without `indent`; None where a line of a long string has less."""
  if any(line.strip() and not line.startswith(indent) for line in lines):
    return None
  return ''.join(line.removeprefix(indent) for line in lines)


def _has_lines_of_its_own(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  """Whether the docstring shares no line with code, and code follows it."""
  if len(node.body) < 2:
    return False
  said, following = node.body[:2]
  return node.lineno < said.lineno and said.end_lineno < following.lineno
