"""What the fields of a config may be: choices, ranges, and what fits together.

What depends on the devices is in `config.py`.
"""

import math
import os
from collections.abc import Collection
from typing import Any

from lm import errors, models, objectives
from lm.config import decoding
from lm.data import sources, tokenizer
from lm.data.sources import documents, streams
from lm.data.text import cleaning, segmentation
from lm.generation import unmasking
from lm.models import attention, blocks, heads, stack, transformer
from lm.objectives import (
  diffusion,
  layout,
  masked,
  mixture,
  mixture_components,
  prefix,
  span,
  span_noise,
)
from lm.training import budget, optimizer

DTYPES = ('float32', 'bfloat16')

# Field -> its choices.
_CHOICES: dict[str, tuple[str, ...]] = {
  'data.source': tuple(sources.SOURCES),
  'data.errors': documents.ERRORS,
  'data.words': segmentation.WORDS,
  'objective.name': tuple(objectives.OBJECTIVES),
  'objective.inputs': layout.INPUTS,
  'objective.prefix.split': prefix.SPLITS,
  'objective.masked.unit': tuple(masked.UNITS),
  'objective.diffusion.estimator': tuple(diffusion.ESTIMATORS),
  'objective.span.target': span.TARGETS,
  'objective.span.corrupted': span.CORRUPTED,
  'objective.span.noise': span_noise.NOISES,
  'objective.span.unit': span_noise.UNITS,
  'objective.mixture.weighting': mixture.WEIGHTINGS,
  'model.family': tuple(models.FAMILIES),
  'model.architecture': transformer.ARCHITECTURES,
  'model.activation': tuple(blocks.ACTIVATIONS),
  'model.position': blocks.POSITIONS,
  'model.norm': blocks.NORMS,
  'model.norm_placement': blocks.NORM_PLACEMENTS,
  'model.readout': blocks.READOUTS,
  'model.dtype': DTYPES,
  'model.remat': tuple(stack.REMATS),
  'model.attention': attention.IMPLEMENTATIONS,
  'optimizer.name': tuple(optimizer.OPTIMIZERS),
  'optimizer.schedule': tuple(optimizer.SCHEDULES),
  'generate.order': tuple(unmasking.ORDERS),
}

# Choices that may be left at None: made where what they depend on is known.
_OPEN_CHOICES = ('model.attention', 'model.architecture', 'generate.order')

# Fields for which None is an answer: no limit, or as many as there are.
_MAY_BE_NONE = (
  *(*budget.FIELDS, 'data.processes'),
  *(f'generate.{name}' for name in decoding.DEFAULTS),
)

# Field -> (least, most) value; finite, where most is None.
_BOUNDS: dict[str, tuple[float, float | None]] = {
  'seed': (0, 2**32 - 1),
  'data.document_bytes': (1024, 2**31 - 1),
  'data.held_out_fraction': (0, 0.4),
  'data.held_out_bytes': (1, None),
  'data.sequence_length': (2, None),
  'data.batch_size': (1, None),
  'data.threads': (0, None),
  'data.prefetch': (1, None),
  'data.near_duplicates': (0, 1),
  'data.processes': (0, None),
  'data.cleaning.min_words': (0, None),
  'data.cleaning.max_words': (1, None),
  'data.cleaning.min_characters': (0, None),
  'data.cleaning.max_digits': (0, 1),
  'data.cleaning.language_share': (0, 1),
  'objective.prefix.share': (0, 0.99),
  'objective.masked.rate': (1e-6, 1),
  'objective.masked.mask_share': (0, 1),
  'objective.masked.random_share': (0, 1),
  'objective.diffusion.epsilon': (1e-6, 0.5),
  'objective.span.rate': (1e-6, 0.99),
  'objective.span.mean': (1, None),
  'objective.supervised.target_share': (0.01, 0.99),
  'model.num_layers': (1, None),
  'model.num_encoder_layers': (0, None),
  'model.width': (1, None),
  'model.num_heads': (1, None),
  'model.num_kv_heads': (1, None),
  'model.head_size': (1, None),
  'model.mlp_width': (1, None),
  'model.token_types': (0, None),
  'model.dropout': (0, 0.99),
  'model.norm_epsilon': (0, None),
  'model.rotary_base': (1, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.warmup_steps': (0, None),
  'train.steps': (1, None),  # before the field that it is the default of
  'train.tokens': (1, None),
  'train.flops': (1, None),
  'train.seconds': (1e-3, None),
  'train.step_seconds': (1e-9, None),
  'train.profile': (0, None),
  'optimizer.schedule_steps': (1, None),
  'optimizer.final_fraction': (0, 1),
  'optimizer.decay_fraction': (0, 1),
  'optimizer.weight_decay': (0, None),
  'optimizer.b1': (0, 0.99999),  # at 1 the bias correction divides by 0
  'optimizer.b2': (0, 0.99999),
  'optimizer.epsilon': (0, None),
  'optimizer.momentum': (0, 1),
  'optimizer.clip_norm': (0, None),
  'train.microbatches': (1, None),
  'train.loss_chunk': (0, None),
  'train.label_smoothing': (0, 0.99),
  'train.z_loss': (0, None),
  'train.ema': (0, 0.999999),  # at 1 the average never moves
  'train.log_every': (0, None),
  'train.evaluate_every': (0, None),
  'train.checkpoint_every': (0, None),
  'train.keep_checkpoints': (1, None),
  'evaluate.batches': (0, None),
  'evaluate.batch_size': (1, None),
  'evaluate.windows': (0, None),
  'evaluate.bound_samples': (2, None),  # one tells nothing of its error
  'generate.max_tokens': (1, None),
  'generate.temperature': (0, None),
  'generate.top_k': (0, None),
  'generate.top_p': (0, 1),
  'generate.min_p': (0, 1),
  'generate.repetition_penalty': (1, None),
  'generate.beams': (1, None),
  'generate.length_penalty': (0, None),
  'generate.seed': (0, 2**32 - 1),
  'generate.samples_per_prompt': (1, None),
  'generate.batch_size': (1, None),
  'generate.samples': (0, None),
  'show.examples': (1, None),
  'show.tokens': (2, None),
  'show.seed': (0, 2**32 - 1),
  'generate.candidates': (0, None),
  'generate.steps': (1, None),
}

# Below, documents that have little in common are compared, all with all.
_LEAST_NEAR = 0.7

# What only some optimizers read; None for the others.
OF_OPTIMIZERS = ('weight_decay', 'b1', 'b2', 'epsilon', 'momentum')


def check_given(config, *, resolved_later: Collection[str]):
  """Checks each field by itself, before defaults are filled in.

  Args:
    resolved_later: fields that may be None until then.

  Raises:
    UserError: names the field, its value, what is allowed and the mend.
  """
  _check_choices(config)
  _check_data(config)
  _check_optimizer_reads(config)
  _check_bounds(config, resolved_later)
  if config.model.head_size is None:
    _divides(config, 'model.num_heads', 'model.width', 'so no head size fits')
  shown_objectives(config)


def check_resolved(config, *, resolved_later: Collection[str]):
  """Checks the defaults, too, and that fields fit together.

  Raises:
    UserError: as `check_given`.
  """
  _check_bounds(config, resolved_later)
  _check_architecture(config)
  _check_objective(config)
  _check_shapes(config)


def get(config, field: str) -> Any:
  """The value of 'section.field'; UserError where there is none."""
  try:
    for name in field.split('.'):
      config = config[name]
  except (KeyError, TypeError):
    raise errors.UserError(
      f'the config has no field {field}; experiments/base.py has all of them'
    ) from None
  return config


def shown_objectives(config) -> tuple[str, ...]:
  """The names in `show.objectives`; none: the config's own, all: every one.

  Raises:
    UserError: one of them is unknown.
  """
  given = config.show.objectives
  # As a flag, names with commas come as one string.
  names = [n.strip() for entry in given for n in str(entry).split(',')]
  for name in names:
    if name not in ('all', *objectives.OBJECTIVES):
      raise errors.UserError(
        f"show.objectives has an unknown objective '{name}'; choose from "
        f'{", ".join(objectives.OBJECTIVES)}, or all'
      )
  if 'all' in names:
    return tuple(objectives.OBJECTIVES)
  return tuple(dict.fromkeys(names)) or (config.objective.name,)


def _check_choices(config, section: str = ''):
  for field, choices in _CHOICES.items():
    if not field.startswith(section):
      continue
    value = get(config, field)
    if value is None and field in _OPEN_CHOICES:
      continue
    if value not in choices:
      raise errors.UserError(
        f"unknown {field}='{value}'; choose from {', '.join(choices)}"
      )
  if len(set(config.model.heads)) < len(config.model.heads):
    raise errors.UserError(
      f'model.heads={tuple(config.model.heads)} names one twice; give it once'
    )
  for name in config.model.heads:
    if name not in heads.HEADS:
      raise errors.UserError(
        f"unknown head '{name}' in model.heads; choose from "
        f'{", ".join(heads.HEADS)}'
      )


def _check_data(config):
  name = config.data.tokenizer
  if name not in tokenizer.KINDS and not os.path.exists(name):
    raise errors.UserError(
      f"unknown data.tokenizer='{name}'; choose from "
      f'{", ".join(tokenizer.KINDS)}, or give the path of a saved tokenizer'
    )
  streams.check_encoding(config.data.encoding)
  cleaning.make(config.data, config.data.cleaning.rules or ())
  if not config.data.text_column:
    raise errors.UserError(
      "data.text_column='' names no column; give the one that holds the text"
    )
  _check_pairs(config)


def _check_pairs(config):
  data, name = config.data, config.objective.name
  column = data.target_column
  if column is None:
    if objectives.spec(config).data == 'pairs':
      raise errors.UserError(
        f"objective.name='{name}' is trained on pairs, but data.target_column "
        'is not given; name the column that holds their targets'
      )
    return
  if objectives.spec(config).data == 'text':
    raise errors.UserError(
      f"objective.name='{name}' is trained on text, but data.target_column="
      f'{column!r} makes pairs; leave it out, or take '
      "objective.name='supervised'"
    )
  if column in ('', data.text_column):
    raise errors.UserError(
      f'data.target_column={column!r} is no column beside data.text_column='
      f'{data.text_column!r}; give the one that holds the targets'
    )
  if data.language is not None:
    raise errors.UserError(
      f'data.language={data.language!r} drops documents in other languages, '
      f'but data.target_column={column!r} makes pairs, which may have two; '
      'leave one out'
    )
  for rule, _ in cleaning.make(data, data.cleaning.rules or ()):
    if rule not in cleaning.OF_PAIRS:
      raise errors.UserError(
        f'data.cleaning.rules: {rule!r} judges documents, but '
        f'data.target_column={column!r} makes pairs; choose from '
        f'{", ".join(cleaning.OF_PAIRS)}'
      )


def _check_optimizer_reads(config):
  cfg = config.optimizer
  reads = optimizer.DEFAULTS[cfg.name]
  for field in OF_OPTIMIZERS:
    value = get(config, f'optimizer.{field}')
    if value is not None and field not in reads:
      raise errors.UserError(
        f"optimizer.{field}={value} is not read by optimizer.name='{cfg.name}'"
        f', which reads {", ".join(reads)}; leave it out'
      )


def _check_bounds(config, resolved_later, section: str = ''):
  for field, (least, most) in _BOUNDS.items():
    if not field.startswith(section):
      continue
    value = get(config, field)
    if value is None and (field in resolved_later or field in _MAY_BE_NONE):
      continue
    # NaN is neither less nor more, and infinity is no JSON.
    fits = value is not None and math.isfinite(value) and value >= least
    if not fits or (most is not None and value > most):
      allowed = f'at least {least}' if most is None else f'{least} to {most}'
      raise errors.UserError(f'{field}={value} is out of range: give {allowed}')
  near = config.data.near_duplicates
  if 0 < near < _LEAST_NEAR:
    raise errors.UserError(
      f'data.near_duplicates={near} is out of range: give {_LEAST_NEAR} to 1, '
      'or 0 to keep them'
    )


def _divides(config, part: str, whole: str, why: str):
  small, large = get(config, part), get(config, whole)
  if large % small:
    raise errors.UserError(
      f'{whole}={large} is not divisible by {part}={small}, {why}; change one'
    )


def _check_architecture(config):
  name, model = config.objective.name, config.model
  allowed = objectives.spec(config).architectures
  if model.architecture not in allowed:
    raise errors.UserError(
      f"objective.name='{name}' trains model.architecture="
      f"{' or '.join(map(repr, allowed))}, not '{model.architecture}'; change "
      'one, or leave model.architecture out'
    )
  if config.data.cross_document_attention and name != 'causal':
    raise errors.UserError(
      'data.cross_document_attention=True makes a row one causal segment, '
      f"which is not for objective.name='{name}'; leave it out"
    )
  models.family(config).check(config)


def _check_objective(config):
  if config.objective.name == 'mixture':
    _check_mixture(config)
  objectives.spec(config).check(config)


def _check_mixture(config):
  """The fields of each component."""
  for number, component in enumerate(mixture_components.read(config)):
    try:
      own = component.config(config)
      section = f'objective.{component.objective}.'
      _check_choices(own, section)
      _check_bounds(own, resolved_later=(), section=section)
    except errors.UserError as error:
      raise mixture_components.component_error(number, str(error)) from None


def _check_shapes(config):
  data = config.data
  if data.tokenizer in tokenizer.KINDS:
    tokenizer.check_vocab_size(data.tokenizer, data.vocab_size)
  cfg = config.optimizer
  if cfg.warmup_steps >= cfg.schedule_steps:
    raise errors.UserError(
      f'optimizer.warmup_steps={cfg.warmup_steps} leaves nothing of '
      f'optimizer.schedule_steps={cfg.schedule_steps}; lower the first or '
      'leave it out'
    )
  stable = cfg.schedule_steps - optimizer.decay_steps(cfg) - cfg.warmup_steps
  if cfg.schedule == 'wsd' and stable < 0:
    raise errors.UserError(
      f'optimizer.decay_fraction={cfg.decay_fraction} of '
      f'optimizer.schedule_steps={cfg.schedule_steps} does not fit behind '
      f'optimizer.warmup_steps={cfg.warmup_steps}; lower one'
    )
