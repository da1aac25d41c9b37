"""The worked examples of docstrings: their numbers are typed nowhere else."""

import inspect
import re

import numpy as np

from lm import types
from lm.data import tokenizer

# Symbols that stand for ids.
_IDS = {
  **{name: getattr(tokenizer, name) for name in ('PAD', 'BOS', 'EOS', 'SEP')},
  **{'MASK': tokenizer.MASK, 'S': tokenizer.MODE_S},
  **{f'S{i}': tokenizer.SENTINELS[i] for i in range(9)},
}
_ARRAY = re.compile(r'(\w+|->)\s*\[([^\[\]]*)\]')


def examples(documented) -> list[dict[str, np.ndarray]]:
  """The arrays `name [...]` of a docstring, by name, in order of its lines.

  inputs [10 11], targets [12 13 EOS]
  tokens   [BOS 10 11 12  13]
  targets  [ 10 11 12 13 EOS]

  are two: a line with several arrays is one, and so are consecutive lines with
  one array each whose names differ. What is in brackets and not all numbers and
  symbols is no array.
  """
  found, together = [], False
  for line in inspect.getdoc(documented).splitlines():
    arrays = [(name, _values(x.split())) for name, x in _ARRAY.findall(line)]
    arrays = {name: values for name, values in arrays if values is not None}
    if len(arrays) == 1 and together and not arrays.keys() & found[-1].keys():
      found[-1].update(arrays)
    elif arrays:
      found.append(arrays)
    together = len(arrays) == 1
  return found


def example(documented) -> dict[str, np.ndarray]:
  """All arrays of a docstring in which no name is repeated, by name."""
  parts = examples(documented)
  merged = {name: values for part in parts for name, values in part.items()}
  assert len(merged) == sum(map(len, parts)) > 0, parts
  return merged


def lines(documented) -> list[list[str]]:
  """The words of each line of a docstring."""
  return [line.split() for line in inspect.getdoc(documented).splitlines()]


def check(found: types.Example, expected: dict[str, np.ndarray]):
  """Asserts the arrays of an Example that a worked example has."""
  names = {name.rpartition('_')[0]: name for name in vars(found)}
  shown = names.keys() & expected.keys()
  assert shown, expected
  for name in shown:
    np.testing.assert_array_equal(
      getattr(found, names[name]), expected[name], err_msg=name
    )


def _values(words: list[str]) -> np.ndarray | None:
  values = []
  for word in words:
    if word in _IDS:
      values.append(_IDS[word])
    elif re.fullmatch(r'-?\d+', word):
      values.append(int(word))
    elif re.fullmatch(r'-?\d+\.\d+', word):
      values.append(float(word))
    else:
      return None
  return np.array(values)
