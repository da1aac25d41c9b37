"""What a run generates from prompts: which way each takes, and printing."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm import errors, load_run
from lm.generation import (
  completion,
  fill_mask,
  fill_spans,
  left_to_right,
  prompts as prompts_lib,
)
from lm.objectives import base as objectives_base
from lm.runtime import hosts


@dataclasses.dataclass(frozen=True)
class Way:
  """Of what an objective can generate, see `Objective.generates`.

  make: of a run. marks: of prompts that it takes, see `prompts.mark`. does:
  what an objective with it does. example: a prompt for it. continues: a prompt
  without marks is the beginning of the text. What it reads of the config's
  section `generate` is in READS of `decoding.py`.
  """

  make: Callable[[load_run.Trained], completion.Completer]
  marks: tuple[str, ...]
  does: str
  example: str
  continues: bool = False


WAYS = {
  'continuation': Way(
    left_to_right.of_continuations,
    marks=('',),
    does='goes on from text without marks',
    example='The state of the Union is',
    continues=True,
  ),
  'target': Way(
    left_to_right.of_targets,
    marks=('',),
    does='turns a source text without marks into its target',
    example='A source text.',
  ),
  'spans': Way(
    fill_spans.Spans,
    marks=(prompts_lib.SENTINEL,),
    does=f'fills {prompts_lib.SENTINEL}, <extra_id_1>, ... in a text',
    example='Thank you <extra_id_0> me to your party <extra_id_1> week.',
  ),
  'masks': Way(
    fill_mask.Masks,
    marks=(prompts_lib.MASK,),
    does=f'fills each {prompts_lib.MASK} in a text',
    example='The capital of France is [MASK].',
  ),
  'unmasking': Way(
    fill_mask.Unmasking,
    marks=('', prompts_lib.MASK),
    does=f'goes on from a text, or fills each {prompts_lib.MASK} in it',
    example='The capital of France is [MASK].',
    continues=True,
  ),
}


class Completers:
  """The ways to generate of a run, each made when a prompt asks for it."""

  def __init__(self, run: load_run.Trained):
    self._run = run
    self._made: dict[str, completion.Completer] = {}

  def __getitem__(self, way: str) -> completion.Completer:
    if way not in self._made:
      self._made[way] = WAYS[way].make(self._run)
    return self._made[way]

  @property
  def prompts_at_once(self) -> int:
    """As many as fill `generate.batch_size` with their samples; at least 1."""
    cfg = self._run.config.generate
    # None: the objective generates nothing, or all samples would be the same.
    return max(1, (cfg.batch_size or 1) // (cfg.samples_per_prompt or 1))

  def way(self, prompt: str) -> str:
    """The way that a prompt asks for, by its marks.

    Raises:
      UserError: the objective has none for it.
    """
    mark = prompts_lib.mark(prompt)
    objective = self._run.objective
    for name in objective.generates:
      if mark in WAYS[name].marks:
        return name
    raise errors.UserError(
      f'the prompt has {mark or "no marks"}, but '
      f'{_describe(self._run.config, objective)}'
    )


def example(objective: objectives_base.Objective) -> str | None:
  """A prompt that the objective takes; None where it generates nothing."""
  ways = objective.generates
  return WAYS[ways[0]].example if ways else None


def _does(config, objective: objectives_base.Objective) -> str:
  ways = [WAYS[name].does for name in objective.generates]
  what = ', or '.join(ways) or 'generates nothing'
  return f"objective.name='{config.objective.name}' {what}"


def _describe(config, objective: objectives_base.Objective) -> str:
  examples = [f"--prompt='{WAYS[x].example}'" for x in objective.generates]
  more = f'; give one such as {" or ".join(examples)}' if examples else ''
  return _does(config, objective) + more


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
    prompts: where they are a sequence, what is given for others is refused.
    one_by_one: answers a prompt before it reads the next, as a person at a
      terminal expects; else as many as fill `generate.batch_size` are read and
      decoded together.
  """
  _check_reads(overrides, prompts)
  loaded = load_run.load(workdir, overrides)
  completers = Completers(loaded)
  at_once = 1 if one_by_one else completers.prompts_at_once
  prompts, before = iter(prompts), 0
  while group := hosts.decide(lambda: list(itertools.islice(prompts, at_once))):
    # All of them before the first is printed: one may be a mistake.
    ways = [completers.way(prompt) for prompt in group]
    # Of several ways those that follow one another are decoded together.
    for way, same in itertools.groupby(range(len(group)), key=ways.__getitem__):
      part = [group[place] for place in same]
      _complete(completers[way], part, before)
      before += len(part)


def _check_reads(
  overrides: Mapping[str, Any], prompts: Iterable[str] | Sequence[str]
):
  """Raises UserError for what no way reads, whatever the run, of the prompts.

  Those that come one after the other are not known beforehand.
  """
  if 'generate.samples' in overrides:
    raise errors.UserError(
      f'generate.samples={overrides["generate.samples"]} is read when training '
      'ends, not by --mode=generate; leave it out, or for several texts of a '
      'prompt give --config.generate.samples_per_prompt'
    )
  if not isinstance(prompts, Sequence):
    return
  masked = [prompts_lib.mark(prompt) == prompts_lib.MASK for prompt in prompts]
  for name, of_masks, what in _OF_PROMPTS:
    field = f'generate.{name}'
    if field in overrides and of_masks not in masked:
      raise errors.UserError(
        f'{field}={overrides[field]} is not read: it says {what}, and --prompt '
        f'has {"none" if of_masks else "such marks"}; leave it out'
      )


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
