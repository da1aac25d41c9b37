"""Ordered rules over parameter paths: sharding, weight decay and others.

A rule is `(pattern, value)`. A path is the names of a leaf joined by slashes,
`params/trunk/layers/attention/query/kernel`; the first pattern that
`re.search` finds in it determines the value. A path without a rule is an error,
so that no new parameter gets a default by mistake.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax


def path_name(path: Sequence[Any]) -> str:
  """The slash-joined name of a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def match(rules: Sequence[tuple[str, Any]], name: str) -> Any:
  """The value of the first rule whose pattern occurs in `name`."""
  for pattern, value in rules:
    if re.search(pattern, name):
      return value
  raise ValueError(f'no rule matches the parameter path {name!r}')


def tree_match(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
  """A tree like `tree` that holds the value of each leaf's rule."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: match(rules, path_name(path)), tree
  )
