"""What a run generates from prompts: which way each takes, and printing."""

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
  """Prints what is generated for each prompt, as it comes.

  A single prompt that text goes on from streams; of several, decoded in
  batches, each is printed when its turn has come. Of several samples a prompt
  each stands under a line that names it. Notes go to stderr.

  Args:
    overrides: 'section.field' -> value, over the folder's config.
    prompts: where they are a sequence, what has no effect on them is known.
    one_by_one: answers a prompt before it reads the next, as a person at a
      terminal expects; else as many as fill `generate.batch_size` are read and
      decoded together.
  """
  overrides = _effective(overrides, prompts)
  completers = strategies.Completers(load_run.load(workdir, overrides))
  at_once = 1 if one_by_one else completers.prompts_at_once
  prompts, before = iter(prompts), 0
  while group := hosts.decide(lambda: list(itertools.islice(prompts, at_once))):
    # All of them before the first is printed: one may be a mistake.
    ways = [completers.strategy(prompt) for prompt in group]
    # Of several ways those that follow one another are decoded together.
    for way, same in itertools.groupby(range(len(group)), key=ways.__getitem__):
      part = [group[place] for place in same]
      _complete(completers[way], part, before)
      before += len(part)


def _effective(
  overrides: Mapping[str, Any], prompts: Iterable[str] | Sequence[str]
) -> dict[str, Any]:
  """Overrides without those that have no effect on the prompts, with a warning.

  Prompts that come one after the other are not known beforehand.
  """
  without = {
    'generate.samples': 'is read when training ends, not by --mode=generate; '
    'leave it out, or for several texts of a prompt give '
    '--config.generate.samples_per_prompt'
  }
  if isinstance(prompts, Sequence):
    masked = [prompts_lib.mark(x) == prompts_lib.MASK for x in prompts]
    without |= {
      f'generate.{name}': f'is not read: it says {what}, and --prompt has '
      f'{"none" if of_masks else "such marks"}; leave it out'
      for name, of_masks, what in _OF_PROMPTS
      if of_masks not in masked
    }
  for name in [name for name in without if name in overrides]:
    check.warn(f'{name}={overrides[name]!r} {without[name]}')
  return {k: v for k, v in overrides.items() if k not in without}


# Field that is read of some prompts, whether those have masks, what it says.
_OF_PROMPTS = (
  ('candidates', True, f'what is told of each {prompts_lib.MASK}'),
  ('max_tokens', False, f'where text without {prompts_lib.MASK} ends'),
)


def _complete(
  completer: completion.Completer, group: Sequence[str], before: int
):
  """Prints what is generated for prompts, behind `before` others."""
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
  """Of a sample; both are counted from 1."""
  if each == 1:
    return f'{prompt + 1}'
  return f'prompt {prompt + 1}, sample {sample + 1}'


class _Printer:
  """Prints texts that come in turns one after the other."""

  def __init__(self, beginnings: Sequence[str]):
    self._texts = list(beginnings)
    self._current = 0
    _show(self._texts[0])

  def add(self, row: int, text: str):
    """Takes new text of the batch's row `row`."""
    if row == self._current:
      _show(text)
    else:
      self._texts[row] += text

  def end(self):
    """The current text is whole: goes on to the next."""
    _show('\n')
    self._current += 1
    if self._current < len(self._texts):
      _show(self._texts[self._current])


def _show(text: str):
  print(text, end='', flush=True)
