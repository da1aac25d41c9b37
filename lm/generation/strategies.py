"""The table of generation strategies, and their choice by the prompt."""

import dataclasses
from collections.abc import Callable

from lm import errors, types
from lm.generation import (
  completion,
  fill_mask,
  fill_spans,
  left_to_right,
  prompts as prompts_lib,
  sampling,
  unmasking,
)
from lm.training import loaded


@dataclasses.dataclass(frozen=True)
class Strategy:
  """A generation strategy, see `Objective.generates`.

  make: builds its completer for a loaded model.
  reads: names of the fields of `generate` that it reads.
  marks: marks of the prompts that it accepts, see `prompts.mark`.
  action: what it does, as a predicate for messages.
  example: a prompt that it accepts.
  continues: whether a prompt without marks is the beginning of the text.
  """

  make: Callable[[loaded.LoadedModel], completion.Completer]
  reads: tuple[str, ...]
  marks: tuple[str, ...]
  action: str
  example: str
  continues: bool = False


STRATEGIES = {
  'continuation': Strategy(
    left_to_right.continuation_generator,
    left_to_right.READS,
    marks=('',),
    action='continues text without marks',
    example='The state of the Union is',
    continues=True,
  ),
  'target': Strategy(
    left_to_right.target_generator,
    left_to_right.READS,
    marks=('',),
    action='transforms a source text without marks into its target',
    example='A source text.',
  ),
  'spans': Strategy(
    fill_spans.SpanFiller,
    left_to_right.READS,
    marks=(prompts_lib.SENTINEL,),
    action=f'fills {prompts_lib.SENTINEL}, <extra_id_1>, ... in a text',
    example='Thank you <extra_id_0> me to your party <extra_id_1> week.',
  ),
  'masks': Strategy(
    fill_mask.MaskFiller,
    ('batch_size', *fill_mask.FIELDS),
    marks=(prompts_lib.MASK,),
    action=f'fills each {prompts_lib.MASK} in a text',
    example='The capital of France is [MASK].',
  ),
  'unmasking': Strategy(
    fill_mask.Unmasker,
    (
      *('batch_size', 'max_tokens', *sampling.READS),
      *(*fill_mask.FIELDS, *unmasking.FIELDS),
    ),
    marks=('', prompts_lib.MASK),
    action=f'continues a text, or fills each {prompts_lib.MASK} in it',
    example='The capital of France is [MASK].',
    continues=True,
  ),
}


class Completers:
  """The completers of a loaded model, each built when a prompt needs it."""

  def __init__(self, run: loaded.LoadedModel):
    self._run = run
    self._completers: dict[str, completion.Completer] = {}

  def __getitem__(self, name: str) -> completion.Completer:
    if name not in self._completers:
      self._completers[name] = STRATEGIES[name].make(self._run)
    return self._completers[name]

  @property
  def prompts_at_once(self) -> int:
    """Number of prompts whose samples fill a batch; at least 1."""
    cfg = self._run.config.generate
    # None if the objective generates nothing, or all samples would be equal.
    return max(1, (cfg.batch_size or 1) // (cfg.samples_per_prompt or 1))

  def strategy(self, prompt: str) -> str:
    """Name of the strategy for a prompt, chosen by its marks.

    Raises:
      UserError: the objective has no strategy for them.
    """
    mark = prompts_lib.mark(prompt)
    objective = self._run.objective
    for name in objective.generates:
      if mark in STRATEGIES[name].marks:
        return name
    raise errors.UserError(
      f'the prompt has {mark or "no marks"}, but '
      f'{_describe(self._run.config, objective)}'
    )


def example(objective: types.Objective) -> str | None:
  """A prompt that the objective accepts; None if it generates nothing."""
  names = objective.generates
  return STRATEGIES[names[0]].example if names else None


def _describe(config, objective: types.Objective) -> str:
  found = [STRATEGIES[name] for name in objective.generates]
  actions = ', or '.join(one.action for one in found) or 'generates nothing'
  examples = ' or '.join(f"--prompt='{one.example}'" for one in found)
  more = f'; give one such as {examples}' if examples else ''
  return f"objective.name='{config.objective.name}' {actions}{more}"
