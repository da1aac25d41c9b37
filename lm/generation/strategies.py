"""What can be generated from prompts: one table of strategies."""

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
  """A way to generate that an objective can serve, see `Objective.generates`.

  make: builds it for a loaded model.
  reads: names of the fields of `generate` that it reads.
  marks: marks of the prompts that it accepts, see `prompts.mark`.
  does: what an objective with it does, for messages.
  example: a prompt for it.
  continues: whether a prompt without marks is the beginning of the text.
  """

  make: Callable[[loaded.LoadedModel], completion.Completer]
  reads: tuple[str, ...]
  marks: tuple[str, ...]
  does: str
  example: str
  continues: bool = False


STRATEGIES = {
  'continuation': Strategy(
    left_to_right.of_continuations,
    left_to_right.READS,
    marks=('',),
    does='goes on from text without marks',
    example='The state of the Union is',
    continues=True,
  ),
  'target': Strategy(
    left_to_right.of_targets,
    left_to_right.READS,
    marks=('',),
    does='turns a source text without marks into its target',
    example='A source text.',
  ),
  'spans': Strategy(
    fill_spans.Spans,
    left_to_right.READS,
    marks=(prompts_lib.SENTINEL,),
    does=f'fills {prompts_lib.SENTINEL}, <extra_id_1>, ... in a text',
    example='Thank you <extra_id_0> me to your party <extra_id_1> week.',
  ),
  'masks': Strategy(
    fill_mask.Masks,
    ('batch_size', *fill_mask.FIELDS),
    marks=(prompts_lib.MASK,),
    does=f'fills each {prompts_lib.MASK} in a text',
    example='The capital of France is [MASK].',
  ),
  'unmasking': Strategy(
    fill_mask.Unmasking,
    (
      *('batch_size', 'max_tokens', *sampling.READS),
      *(*fill_mask.FIELDS, *unmasking.FIELDS),
    ),
    marks=('', prompts_lib.MASK),
    does=f'goes on from a text, or fills each {prompts_lib.MASK} in it',
    example='The capital of France is [MASK].',
    continues=True,
  ),
}


class Completers:
  """The strategies of a loaded model, each built when a prompt asks for it."""

  def __init__(self, run: loaded.LoadedModel):
    self._run = run
    self._made: dict[str, completion.Completer] = {}

  def __getitem__(self, name: str) -> completion.Completer:
    if name not in self._made:
      self._made[name] = STRATEGIES[name].make(self._run)
    return self._made[name]

  @property
  def prompts_at_once(self) -> int:
    """As many as fill `generate.batch_size` with their samples; at least 1."""
    cfg = self._run.config.generate
    # None: the objective generates nothing, or all samples would be the same.
    return max(1, (cfg.batch_size or 1) // (cfg.samples_per_prompt or 1))

  def strategy(self, prompt: str) -> str:
    """Name of the strategy that a prompt asks for, by its marks.

    Raises:
      UserError: the objective has none for it.
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
  """A prompt that the objective takes; None where it generates nothing."""
  names = objective.generates
  return STRATEGIES[names[0]].example if names else None


def _does(config, objective: types.Objective) -> str:
  found = [STRATEGIES[name].does for name in objective.generates]
  what = ', or '.join(found) or 'generates nothing'
  return f"objective.name='{config.objective.name}' {what}"


def _describe(config, objective: types.Objective) -> str:
  prompts = [STRATEGIES[name].example for name in objective.generates]
  examples = [f"--prompt='{prompt}'" for prompt in prompts]
  more = f'; give one such as {" or ".join(examples)}' if examples else ''
  return _does(config, objective) + more
