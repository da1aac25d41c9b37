"""Training objectives, by name."""

import dataclasses

from lm import errors, field, types
from lm.data import tokenizer as tokenizer_lib
from lm.objectives import (
  causal,
  deshuffle,
  diffusion,
  layout,
  masked,
  mixture,
  prefix,
  span,
  supervised,
  token_loss,
)

OBJECTIVES: dict[str, types.ObjectiveSpec] = {
  'causal': causal.SPEC,
  'prefix': prefix.SPEC,
  'masked': masked.SPEC,
  'diffusion': diffusion.SPEC,
  'span': span.SPEC,
  'deshuffle': deshuffle.SPEC,
  'mixture': mixture.SPEC,
  'supervised': supervised.SPEC,
}

FIELDS = field.section(
  name=field.Field(
    'causal',
    'The objective.',
    choices=tuple(OBJECTIVES),
    renamed={
      spec.former_name: name
      for name, spec in OBJECTIVES.items()
      if spec.former_name
    },
  ),
  **layout.FIELDS,
  **{name: spec.fields for name, spec in OBJECTIVES.items() if spec.fields},
)

# Name in older run folders -> today's.
RENAMED = FIELDS['name'].renamed


def spec(config) -> types.ObjectiveSpec:
  """The spec of the objective that `objective.name` names."""
  return OBJECTIVES[config.objective.name]


def make(
  config, tokenizer: tokenizer_lib.Tokenizer | None = None
) -> types.Objective:
  """Builds the objective that `objective.name` of a resolved config names.

  Args:
    tokenizer: the tokenizer of the ids; without one every id below
      `data.vocab_size` that is not special counts as a piece of text.

  Raises:
    UserError: rows are too short for a token, or so long that sentinels run
      out.
  """
  name, length = config.objective.name, config.data.sequence_length
  made = spec(config).make(config, tokenizer)
  if not made.raw_length:
    least = made.upper_bound and f'at least {made.upper_bound(1).positions}'
    raise errors.UserError(
      f'data.sequence_length={length} has no room for a token as '
      f'objective.name={name!r} writes it; give {least or "a larger one"}'
    )
  made.check_length(made.raw_length)
  if made.loss is None:
    made = token_loss.fill_in(made, config, name)
  return dataclasses.replace(made, pairs=spec(config).data == 'pairs')
