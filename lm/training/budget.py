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
from typing import Any

from lm import objectives
from lm.training import flops

# Fields of the budgets; None is no limit.
FIELDS = ('train.steps', 'train.tokens', 'train.flops', 'train.seconds')
# Steps of a run without any budget.
DEFAULT_STEPS = 1000
# Largest int32, the type of the state's counter: stands for seconds that have
# not been measured yet.
_ENDLESS = 2**31 - 1


def steps(config) -> int:
  """Steps of the whole run, from its start, to the first budget reached.

  The step that reaches a budget is the last one; there is at least one.

  Args:
    config: has budgets in range, and `model` resolved if train.flops is given.
  """
  return min(limits(config).values(), default=DEFAULT_STEPS)


def limits(config) -> dict[str, int]:
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
    a_step = flops.train_step(config, objectives.make(config))
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


def describe(config) -> str:
  """The budget that ends the run in words; '' if it is `train.steps`."""
  end = steps(config)
  for field, n in limits(config).items():
    if field != 'train.steps' and n == end:
      text = f'budget: {end} steps, by {field}={_value(config, field)}'
      if field == 'train.seconds':
        text += f' at {config.train.step_seconds:.3g} s a step'
      return text
  return ''


def flags_to_go_on(config, given, done: int) -> str:
  """Flags that let a run of `done` steps continue for as many again.

  Args:
    config: resolved.
    given: the config before it was resolved, with `train.steps` set or None.
  """
  found = limits(config)
  own = given.train.steps
  if own is None and len(found) > 1:
    del found['train.steps']
  else:
    found['train.steps'] = own or DEFAULT_STEPS
  values = {field: _value(config, field) for field in found}
  values |= {'train.steps': own or DEFAULT_STEPS}
  return ' '.join(
    f'--config.{field}={values[field] * -(-2 * done // n)}'
    for field, n in found.items()
    if n < 2 * done
  )


def _value(config, field: str) -> Any:
  section, name = field.split('.')
  return config[section][name]
