"""When training ends: budgets in steps, tokens, FLOPs and seconds, as steps.

The first budget that is reached ends the run. Each is turned into a number of
steps before training begins, so that the schedule knows its end and a run that
is continued stops where it would have.

  tokens   data.batch_size x data.sequence_length a step: positions, padding
           included. Non-padding tokens, the `tokens` of metrics.jsonl, depend
           on the text; they are at most as many.
  flops    `flops.train_step` a step.
  seconds  `train.step_seconds` a step: the median of some steps, measured
           after compiling on a state that is thrown away, once; it is kept in
           config.json with the number of steps. These are seconds of
           training: compiling, evaluation and checkpoints are not counted.
"""

import math

from lm import field, types
from lm.training import flops

# Steps of a run without any budget.
DEFAULT_STEPS = 1000
# Largest int32, the type of the state's counter: stands for seconds that have
# not been measured yet.
_ENDLESS = 2**31 - 1

FIELDS = field.section(
  steps=field.Field(
    None,
    'Budget in steps; the first budget that is reached ends the run. In '
    'config.json it is the number that all budgets come to.',
    kind=int,
    least=1,
    none=f'no limit; {DEFAULT_STEPS} without any budget',
    may_change=True,
  ),
  tokens=field.Field(
    None,
    'Budget in positions, padding included.',
    kind=int,
    least=1,
    none='no limit',
    may_change=True,
  ),
  flops=field.Field(
    None,
    'Budget in FLOPs of the matrix products that the model needs.',
    kind=float,
    least=1,
    none='no limit',
    may_change=True,
  ),
  seconds=field.Field(
    None,
    'Budget in seconds of training steps, without compiling, evaluation and '
    'checkpoints.',
    kind=float,
    least=1e-3,
    none='no limit',
    may_change=True,
  ),
  step_seconds=field.Field(
    None,
    'Seconds of a step, which turn train.seconds into steps.',
    kind=float,
    least=1e-9,
    none='measured when the run starts, and kept',
    derive=lambda config: None,
    may_change=True,
  ),
)


def steps(config, objective: types.Objective) -> int:
  """Steps of the whole run, from its start, to the first budget reached.

  The step that reaches a budget is the last one; there is at least one.

  Args:
    config: has budgets in range, and all but the optimizer is resolved.
  """
  return min(limits(config, objective).values(), default=DEFAULT_STEPS)


def limits(config, objective: types.Objective) -> dict[str, int]:
  """Each budget given, by field, as steps."""
  train, data = config.train, config.data
  found: dict[str, float] = {}
  if train.steps is not None:
    found['train.steps'] = train.steps
  if train.tokens is not None:
    # Integer division: floats are inexact beyond 2^53.
    found['train.tokens'] = -(
      -train.tokens // (data.batch_size * data.sequence_length)
    )
  if train.flops is not None:
    a_step = flops.train_step(config, objective)
    found['train.flops'] = math.ceil(train.flops / a_step)
  if train.seconds is not None:
    measured = train.step_seconds
    found['train.seconds'] = (
      _ENDLESS if measured is None else math.ceil(train.seconds / measured)
    )
  return {name: int(min(n, _ENDLESS)) for name, n in found.items()}


def is_measured(config) -> bool:
  """Whether `steps` is final: seconds, if given, have become steps."""
  return config.train.seconds is None or config.train.step_seconds is not None


def describe(config, objective: types.Objective) -> str:
  """The budget that ends the run in words; '' if it is `train.steps`."""
  end = steps(config, objective)
  for name, n in limits(config, objective).items():
    if name != 'train.steps' and n == end:
      text = f'budget: {end} steps, by {name}={field.get(config, name)}'
      if name == 'train.seconds':
        text += f' at {config.train.step_seconds:.3g} s a step'
      return text
  return ''


def flags_to_continue(
  config, objective: types.Objective, given, done: int
) -> str:
  """Flags that let a run of `done` steps continue for as many again.

  Args:
    config: resolved.
    given: the config before it was resolved, with `train.steps` set or None.
  """
  found = limits(config, objective)
  own = given.train.steps
  if own is None and len(found) > 1:
    del found['train.steps']
  else:
    found['train.steps'] = own or DEFAULT_STEPS
  values = {name: field.get(config, name) for name in found}
  values |= {'train.steps': own or DEFAULT_STEPS}
  return ' '.join(
    f'--config.{name}={values[name] * -(-2 * done // n)}'
    for name, n in found.items()
    if n < 2 * done
  )
