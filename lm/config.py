"""From a config as given to one that a run can trust, and to disk and back."""

import json
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from experiments import base
from lm import (
  budget,
  errors,
  files,
  models,
  objectives,
  optimizer,
  sharding,
)
from lm.data import cleaning, documents, sources, streams, tokenizer
from lm.models import attention, transformer

ARCHITECTURES = ('decoder',)
DTYPES = ('float32', 'bfloat16')

# What may differ when a run is continued, by field or by section.
_MAY_CHANGE = (
  'train.steps',
  'train.tokens',
  'train.flops',
  'train.seconds',
  'train.step_seconds',
  'train.profile',
  'train.log_every',
  'train.evaluate_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.microbatches',
  'model.attention',  # changes rounding only; may not run on other devices
  'data.directory',  # the hash of what it holds may not, see `train.py`
  'data.threads',
  'data.prefetch',
  'data.processes',
  'mesh',
  'evaluate',
  'generate',
)

# Field -> its choices.
_CHOICES: dict[str, tuple[str, ...]] = {
  'data.source': tuple(sources.SOURCES),
  'data.errors': documents.ERRORS,
  'objective.name': tuple(objectives.OBJECTIVES),
  'model.family': tuple(models.FAMILIES),
  'model.architecture': ARCHITECTURES,
  'model.activation': tuple(transformer.ACTIVATIONS),
  'model.position': transformer.POSITIONS,
  'model.norm': transformer.NORMS,
  'model.dtype': DTYPES,
  'model.remat': tuple(transformer.REMATS),
  'model.attention': attention.IMPLEMENTATIONS,
  'optimizer.name': tuple(optimizer.OPTIMIZERS),
  'optimizer.schedule': tuple(optimizer.SCHEDULES),
}

# Choices that may be left at None: made where the devices are known.
_OPEN_CHOICES = ('model.attention',)

# Fields for which None is an answer: no limit, or as many as there are.
_MAY_BE_NONE = (*budget.FIELDS, 'data.processes')

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
  'model.num_layers': (1, None),
  'model.width': (1, None),
  'model.num_heads': (1, None),
  'model.num_kv_heads': (1, None),
  'model.mlp_width': (1, None),
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
}

# Below, documents that have little in common are compared, all with all.
_LEAST_NEAR = 0.7


def _vocab_size(config) -> int:
  name = config.data.tokenizer
  if name == 'bytes':
    return tokenizer.FIRST_PIECE
  if name in tokenizer.KINDS:
    return 8192
  return tokenizer.load(pathlib.Path(name)).vocab_size


def _mlp_width(config) -> int:
  width = config.model.width
  if not transformer.ACTIVATIONS[config.model.activation][1]:
    return 4 * width
  return -(-8 * width // 3 // 64) * 64  # two matrices up: 2/3 of 4 x width


# What only some optimizers read; None for the others.
_OPTIMIZER_FIELDS = ('weight_decay', 'b1', 'b2', 'epsilon', 'momentum')


def _optimizer_default(field: str):
  return lambda config: optimizer.DEFAULTS[config.optimizer.name].get(field)


# Fields that are None until resolved -> their value.
_DEFAULTS: dict[str, Callable[[Any], Any]] = {
  'data.vocab_size': _vocab_size,
  'model.num_kv_heads': lambda config: config.model.num_heads,
  'model.mlp_width': _mlp_width,
  # XLA runs a scan slower than unrolled layers on CPU.
  'model.scan_layers': lambda config: jax.default_backend() != 'cpu',
  # Measured when a run starts and then kept, see `budget.py`.
  'train.step_seconds': lambda config: None,
  'optimizer.schedule_steps': budget.steps,
  'optimizer.warmup_steps': lambda c: c.optimizer.schedule_steps // 10,
  **{
    f'optimizer.{field}': _optimizer_default(field)
    for field in _OPTIMIZER_FIELDS
  },
}


def resolve(
  config: ml_collections.ConfigDict, stored: Mapping[str, Any] | None = None
) -> ml_collections.FrozenConfigDict:
  """Fills in the defaults that depend on other fields, and checks everything.

  What depends on the devices is left to `check_model` and those after it.

  Args:
    config: of `experiments/base.py`, with overrides.
    stored: the nested dict of a run that is to be continued. Fields left at
      None take its values; other differences must be allowed ones.

  Raises:
    UserError: names the field, its value, what is allowed and the mend.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  _check_choices(config)
  config.data.sources = sources.check_mixture(config.data.sources)
  _check_optimizer_reads(config)
  _check_bounds(config)
  old = flatten(_with_tuples(stored)) if stored else {}
  for field, default in _DEFAULTS.items():
    if _get(config, field) is None:
      value = old.get(field)
      if value is None:
        value = default(config)
      section, _, name = field.rpartition('.')
      _get(config, section)[name] = value
  # In place of several budgets, the one number that they come to.
  config.train.steps = budget.steps(config)
  _check_bounds(config)
  _check_shapes(config)
  _check_generate(config)
  if stored:
    _check_unchanged(config, old)
  return ml_collections.FrozenConfigDict(config)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested sections to {'section.field': value}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{name}.'))
    else:
      flat[prefix + name] = value
  return flat


def save(config, workdir: pathlib.Path):
  """Writes WORKDIR/config.json, whole or not at all."""
  files.write_json(workdir / 'config.json', config.to_dict())


def load(workdir: pathlib.Path) -> dict[str, Any]:
  """The nested dict in WORKDIR/config.json.

  Raises:
    UserError: there is none, or it is not JSON.
  """
  path = workdir / 'config.json'
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise errors.UserError(
      f'--workdir={workdir} holds no run: there is no {path}; give the folder '
      'of a run, or train one there with --mode=train'
    ) from None
  except ValueError as error:
    raise errors.UserError(
      f'{path} is not JSON ({error}); restore it, or train into a new folder'
    ) from None
  if not isinstance(config, dict) or not {'data', 'model'} <= config.keys():
    raise errors.UserError(
      f'{path} holds no whole config; restore it, or train into a new folder'
    )
  # Fields that are younger than the run have their defaults.
  config = _merged(base.get_config().to_dict(), _with_tuples(config))
  # Of a run from when every optimizer had a value for each of these.
  reads = optimizer.DEFAULTS.get(config['optimizer']['name'], {})
  for field in set(_OPTIMIZER_FIELDS) - set(reads):
    config['optimizer'][field] = None
  return config


def _with_tuples(value: Any) -> Any:
  """Tuples for lists, which is what they were: JSON has no tuples."""
  if isinstance(value, list):
    return tuple(map(_with_tuples, value))
  if isinstance(value, dict):
    return {name: _with_tuples(item) for name, item in value.items()}
  return value


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]):
  """`given`, with what it lacks from `defaults`, section by section."""
  whole = {**defaults, **given}
  for name, value in defaults.items():
    if isinstance(value, Mapping) and isinstance(given.get(name), Mapping):
      whole[name] = _merged(value, given[name])
  return whole


def _get(config, field: str) -> Any:
  try:
    for name in field.split('.'):
      config = config[name]
  except (KeyError, TypeError):
    raise errors.UserError(
      f'the config has no field {field}; experiments/base.py has all of them'
    ) from None
  return config


def _check_choices(config):
  for field, choices in _CHOICES.items():
    value = _get(config, field)
    if value is None and field in _OPEN_CHOICES:
      continue
    if value not in choices:
      raise errors.UserError(
        f"unknown {field}='{value}'; choose from {', '.join(choices)}"
      )
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


def _check_optimizer_reads(config):
  cfg = config.optimizer
  reads = optimizer.DEFAULTS[cfg.name]
  for field in _OPTIMIZER_FIELDS:
    value = _get(config, f'optimizer.{field}')
    if value is not None and field not in reads:
      raise errors.UserError(
        f"optimizer.{field}={value} is not read by optimizer.name='{cfg.name}'"
        f', which reads {", ".join(reads)}; leave it out'
      )


def _check_bounds(config):
  for field, (least, most) in _BOUNDS.items():
    value = _get(config, field)
    if value is None and (field in _DEFAULTS or field in _MAY_BE_NONE):
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
  small, large = _get(config, part), _get(config, whole)
  if large % small:
    raise errors.UserError(
      f'{whole}={large} is not divisible by {part}={small}, {why}; change one'
    )


def _check_shapes(config):
  data, model = config.data, config.model
  _divides(config, 'model.num_heads', 'model.width', 'so no head size fits')
  _divides(
    config,
    'model.num_kv_heads',
    'model.num_heads',
    'so query heads cannot share keys evenly',
  )
  if model.position == 'rotary' and (model.width // model.num_heads) % 2:
    raise errors.UserError(
      f"model.position='rotary' turns pairs, but the head size "
      f'{model.width}/{model.num_heads} is odd; change model.num_heads'
    )
  if 0 < config.train.loss_chunk < data.sequence_length:
    _divides(
      config,
      'train.loss_chunk',
      'data.sequence_length',
      'and chunks must be of one size',
    )
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


def _check_generate(config):
  cfg = config.generate
  if cfg.beams > 1 and cfg.temperature != 0:
    raise errors.UserError(
      f'generate.beams={cfg.beams} searches and draws nothing, but '
      f'generate.temperature={cfg.temperature}; give '
      '--config.generate.temperature=0 with it, or --config.generate.beams=1'
    )
  if cfg.samples_per_prompt > 1 and cfg.temperature == 0:
    how = 'the likeliest text' if cfg.beams > 1 else 'the likeliest tokens'
    raise errors.UserError(
      f'generate.samples_per_prompt={cfg.samples_per_prompt}, but '
      f'generate.temperature=0 gives {how}, always the same; give a higher '
      'temperature or --config.generate.samples_per_prompt=1'
    )


def check_model(config):
  """Raises UserError unless the devices can run and split the model."""
  models.choose_attention(
    config, objectives.make(config).attention, jax.devices()[0]
  )
  shape = sharding.mesh_shape(config, jax.device_count())
  data, model = config.data, config.model
  split = {
    'data.vocab_size': ('tensor', data.vocab_size),
    'model.num_heads': ('tensor', model.num_heads),
    'model.num_kv_heads': ('tensor', model.num_kv_heads),
    'model.mlp_width': ('tensor', model.mlp_width),
    'model.width': ('fsdp', model.width),
  }
  for field, (axis, size) in split.items():
    if size % shape[axis]:
      raise errors.UserError(
        f'{field}={size} is not divisible by mesh.{axis}={shape[axis]}; '
        'change one'
      )


def check_scoring(config):
  """Raises UserError unless the devices can also split what is scored."""
  check_model(config)
  shape = sharding.mesh_shape(config, jax.device_count())
  _check_rows(config, 'evaluate.batch_size', shape)


def check_training(config):
  """Raises UserError unless the mesh splits training batches, too."""
  check_scoring(config)
  shape = sharding.mesh_shape(config, jax.device_count())
  _check_rows(config, 'data.batch_size', shape)
  size, parts = config.data.batch_size, config.train.microbatches
  shards = shape['data'] * shape['fsdp']
  if size % (parts * shards):
    raise errors.UserError(
      f'data.batch_size={size} is not divisible by train.microbatches={parts} '
      f'x {shards} device(s); change one'
    )


def _check_rows(config, field: str, shape: Mapping[str, int]):
  size, shards = _get(config, field), shape['data'] * shape['fsdp']
  if size % shards:
    raise errors.UserError(
      f'{field}={size} is not divisible by the {shards} devices that share '
      f'a batch (mesh.data={shape["data"]} x mesh.fsdp={shape["fsdp"]}); '
      'change one'
    )


def _check_unchanged(config, old: Mapping[str, Any]):
  new = flatten(config.to_dict())
  for field in sorted(set(new) | set(old)):
    if field in _MAY_CHANGE or field.split('.')[0] in _MAY_CHANGE:
      continue
    if field in _DEFAULTS and old.get(field) is None:
      continue  # younger than the run: resolved only now
    if new.get(field) != old.get(field):
      was = old.get(field)
      mend = f'give --config.{field}={shlex.quote(str(was))}'
      if was is None:
        mend = f'leave --config.{field} out'
      raise errors.UserError(
        f'the run in this folder was made with {field}={was!r}, not '
        f'{new.get(field)!r}; {mend} to go on with it, or another --workdir '
        'for a new run'
      )
