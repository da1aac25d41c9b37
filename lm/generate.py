"""Generates text from prompts with a finished run, and prints it."""

import itertools
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm import load_run
from lm.config import check
from lm.generation import (
  completion,
  prompts as prompts_lib,
  strategies,
)
from lm.runtime import hosts


def run(
  workdir: pathlib.Path,
  overrides: Mapping[str, Any],
  prompts: Iterable[str],
  *,
  one_by_one: bool,
):
  """Prints the text generated for each prompt, as soon as it is available.

  The continuation of a single prompt is streamed. Several prompts are decoded
  in batches and printed in order. If there are several samples per prompt, a
  heading precedes each. Notes go to stderr.

  Args:
    workdir: run folder.
    overrides: 'section.field' -> value, overrides the folder's config.
    prompts: prompts; if they are a sequence, overrides that have no effect on
      any of them are known to have none.
    one_by_one: completes each prompt before reading the next, as a user at a
      terminal expects; otherwise as many as fill `generate.batch_size` are read
      and decoded together.

  Raises:
    UserError: the folder holds no run, or the objective does not accept a
      prompt.
  """
  overrides = _effective(overrides, prompts)
  completers = strategies.Completers(load_run.load(workdir, overrides))
  at_once = 1 if one_by_one else completers.prompts_at_once
  prompts, before = iter(prompts), 0
  while group := hosts.decide(lambda: list(itertools.islice(prompts, at_once))):
    # All are checked before the first is printed, since one may be a mistake.
    names = [completers.strategy(prompt) for prompt in group]
    # Consecutive prompts of one strategy are decoded together.
    for name, same in itertools.groupby(
      range(len(group)), key=names.__getitem__
    ):
      part = [group[place] for place in same]
      _complete(completers[name], part, before)
      before += len(part)


def _effective(
  overrides: Mapping[str, Any], prompts: Iterable[str] | Sequence[str]
) -> dict[str, Any]:
  """The overrides that can have an effect; prints a warning for the others.

  Prompts that are read one after the other are not known beforehand.
  """
  without = {
    'generate.samples': 'is read when training ends, not by --mode=generate; '
    'omit it, or for several texts per prompt give '
    '--config.generate.samples_per_prompt'
  }
  if isinstance(prompts, Sequence):
    masked = [prompts_lib.mark(x) == prompts_lib.MASK for x in prompts]
    without |= {
      f'generate.{name}': f'is not read: it is {what}, and --prompt has '
      f'{"none" if needs_masks else "masks"}; omit it'
      for name, needs_masks, what in _PROMPT_FIELDS
      if needs_masks not in masked
    }
  for name in [name for name in without if name in overrides]:
    check.warn(f'{name}={overrides[name]!r} {without[name]}')
  return {k: v for k, v in overrides.items() if k not in without}


# (field that only some prompts read, whether these have masks, its meaning).
_PROMPT_FIELDS = (
  (
    'candidates',
    True,
    f'the number of candidates reported for each {prompts_lib.MASK}',
  ),
  (
    'max_tokens',
    False,
    f'the maximum length of text generated without {prompts_lib.MASK}',
  ),
)


def _complete(
  completer: completion.Completer, group: Sequence[str], before: int
):
  """Prints the completions of prompts, which follow `before` others."""
  size, each = completer.batch_size, completer.samples_per_prompt
  encoded = [completer.encode(prompt) for prompt in group]
  rows = list(itertools.product(range(len(group)), range(each)))
  for first in range(0, len(rows), size):
    part = rows[first : first + size]
    names = [_name(before + place, sample, each) for place, sample in part]
    heads = [f'=== {name} ===\n' if each > 1 else '' for name in names]
    texts = [completer.beginning(group[place]) for place, _ in part]
    printer = _Printer([''.join(x) for x in zip(heads, texts, strict=True)])
    completions = completer.batch(
      [encoded[place] for place, _ in part],
      [sample for _, sample in part],
      on_text=printer.add,
    )
    for name, one in zip(names, completions, strict=True):
      printer.end()
      if hosts.is_first():
        print(f'[{name}: {one.note()}]', file=sys.stderr, flush=True)


def _name(prompt: int, sample: int, each: int) -> str:
  """Name of a sample; prompts and samples are numbered from 1."""
  if each == 1:
    return f'{prompt + 1}'
  return f'prompt {prompt + 1}, sample {sample + 1}'


class _Printer:
  """Prints texts one after the other while all of them grow."""

  def __init__(self, beginnings: Sequence[str]):
    self._texts = list(beginnings)
    self._current = 0
    _show(self._texts[0])

  def add(self, row: int, text: str):
    """Adds new text to row `row` of the batch."""
    if row == self._current:
      _show(text)
    else:
      self._texts[row] += text

  def end(self):
    """Ends the current text and starts the next."""
    _show('\n')
    self._current += 1
    if self._current < len(self._texts):
      _show(self._texts[self._current])


def _show(text: str):
  print(text, end='', flush=True)
