"""What each way to generate reads of the section `generate`, and when.

A field that is not read is None in a resolved config, so that no code can read
it by mistake, and one that was given all the same is an error.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from lm import errors

_DRAWN = (
  *('temperature', 'top_k', 'top_p', 'min_p'),
  *('repetition_penalty', 'seed', 'samples_per_prompt'),
)
_LEFT_TO_RIGHT = (
  *('batch_size', 'max_tokens', *_DRAWN),
  *('beams', 'length_penalty'),
)

# Way, see WAYS of `generate.py` -> the fields that it reads.
READS: dict[str, tuple[str, ...]] = {
  'continuation': _LEFT_TO_RIGHT,
  'target': _LEFT_TO_RIGHT,
  'spans': _LEFT_TO_RIGHT,
  'masks': ('batch_size', 'candidates'),
  'unmasking': (
    *('batch_size', 'max_tokens', *_DRAWN),
    *('candidates', 'steps', 'order'),
  ),
}

# Field -> its default where it is read. Those that switch others off are above
# them.
DEFAULTS: dict[str, Any] = {
  'batch_size': 8,
  'max_tokens': 128,
  'beams': 1,
  'length_penalty': 0.6,
  'temperature': 0.8,
  'top_k': 0,
  'top_p': 0.95,
  'min_p': 0.0,
  'repetition_penalty': 1.0,
  'steps': None,  # one a mask
  'order': 'confidence',
  'seed': 0,
  'samples_per_prompt': 1,
  'candidates': 5,
}

# Field -> the value that asks for nothing, and may be given anywhere: a flag
# cannot take back what an experiment's file sets.
NEUTRAL: dict[str, float] = {
  'beams': 1,
  'temperature': 0.0,
  'top_k': 0,
  'top_p': 1.0,
  'min_p': 0.0,
  'repetition_penalty': 1.0,
  'samples_per_prompt': 1,
  'candidates': 0,
}


@dataclasses.dataclass(frozen=True)
class Switch:
  """A setting with which others are not read.

  by: its field. on(cfg): whether it is so set. does: what is done with it.
  mend: what to give for `fields` to be read.
  """

  by: str
  on: Callable[[Any], bool]
  fields: tuple[str, ...]
  does: str
  mend: str


def _fixed(cfg) -> bool:
  """Whether places are filled in an order that is not drawn, if in any."""
  return cfg.order != 'random'


_FILTERS = ('top_k', 'top_p', 'min_p')
_RANDOM = ('seed', 'samples_per_prompt')
_WARMER = 'give a higher temperature'


def _likeliest(by: str, value: float, *, mend: str) -> Switch:
  """Draws that are none, unless the places themselves are drawn.

  The likeliest of a place depends on the places that were filled before.
  """
  return Switch(
    by,
    lambda cfg: cfg[by] == value and _fixed(cfg),
    _RANDOM,
    does='which takes the likeliest tokens, always the same',
    mend=mend,
  )


# Of several that are on, the first is told.
SWITCHES = (
  Switch(
    'beams',
    lambda cfg: cfg.beams == 1,
    ('length_penalty',),
    does='which goes on with one token after the other',
    mend='give --config.generate.beams=4 or so',
  ),
  Switch(
    'beams',
    lambda cfg: (cfg.beams or 1) > 1,
    ('temperature', *_FILTERS, *_RANDOM),
    does='which searches for the likeliest text',
    mend='give --config.generate.beams=1',
  ),
  Switch(
    'temperature',
    lambda cfg: cfg.temperature == 0,
    _FILTERS,
    does='which takes the likeliest tokens',
    mend=_WARMER,
  ),
  Switch(
    'steps',
    lambda cfg: cfg.steps == 1,
    ('order',),
    does='which fills all masks at once',
    mend='give more steps',
  ),
  _likeliest('temperature', 0, mend=_WARMER),
  _likeliest('top_k', 1, mend='give a higher one'),
  _likeliest('top_p', 0, mend='give a higher one'),
)


def settle(
  config, ways: Sequence[str], given: Collection[str] | None = None
) -> None:
  """Fills in `config.generate`: defaults where it is read, None elsewhere.

  Args:
    ways: that the config's objective has; a field counts as read where one of
      them reads it.
    given: 'section.field' of those that are the user's; what the others hold
      is of another time and goes where it is not read. None: all that are not
      None are the user's.

  Raises:
    UserError: names a field that was given and is not read, its value, what is
      read, and the mend.
  """
  cfg = config.generate
  reads = {field for way in ways for field in READS[way]}
  for field, default in DEFAULTS.items():
    why = _unread(config, field, reads)
    if why is None:
      if cfg[field] is None:
        cfg[field] = default
      continue
    mine = given is None or f'generate.{field}' in given
    if mine and cfg[field] not in (None, NEUTRAL.get(field)):
      raise errors.UserError(f'generate.{field}={cfg[field]!r} {why}')
    cfg[field] = None


def _unread(config, field: str, reads: Collection[str]) -> str | None:
  """Why a field is not read, and the mend; None where it is.

  Args:
    reads: what the ways of the config read.
  """
  name = f'objective.name={config.objective.name!r}'
  if not reads:
    return f'is not read: {name} as it is set generates nothing; leave it out'
  if field not in reads:
    listed = ', '.join(name for name in DEFAULTS if name in reads)
    return f'is not read by {name}, which reads {listed}; leave it out'
  cfg = config.generate
  for switch in SWITCHES:
    if field in switch.fields and switch.on(cfg):
      value = cfg[switch.by]
      return (
        f'is not read with generate.{switch.by}={value!r}, {switch.does}; '
        f'leave it out, or {switch.mend}'
      )
  return None
