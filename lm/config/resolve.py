"""From a config as given to one that a run can trust, and to disk and back."""

import json
import pathlib
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import ml_collections

from experiments import base
from lm import errors, models, objectives
from lm.config import check, decoding, unread
from lm.data import sources, tokenizer
from lm.evaluation import scoring_methods
from lm.models import blocks
from lm.runtime import files, sharding
from lm.training import budget, optimizer

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
  'show',
)


def _vocab_size(config) -> int:
  name = config.data.tokenizer
  if name == 'bytes':
    return tokenizer.FIRST_PIECE
  if name in tokenizer.KINDS:
    return 8192
  return tokenizer.load(pathlib.Path(name)).vocab_size


def _num_encoder_layers(config) -> int:
  sides = config.model.architecture == 'encoder_decoder'
  return config.model.num_layers if sides else 0


def _mlp_width(config) -> int:
  width = config.model.width
  if not blocks.ACTIVATIONS[config.model.activation][1]:
    return 4 * width
  return -(-8 * width // 3 // 64) * 64  # two matrices up: 2/3 of 4 x width


def _optimizer_default(field: str):
  return lambda config: optimizer.DEFAULTS[config.optimizer.name].get(field)


# Fields that are None until resolved -> their value.
_DEFAULTS: dict[str, Callable[[Any], Any]] = {
  'data.vocab_size': _vocab_size,
  'model.architecture': lambda c: objectives.spec(c).architectures[0],
  'model.num_encoder_layers': _num_encoder_layers,
  'model.num_kv_heads': lambda config: config.model.num_heads,
  'model.head_size': lambda c: c.model.width // c.model.num_heads,
  'model.mlp_width': _mlp_width,
  # XLA runs a scan slower than unrolled layers on CPU.
  'model.scan_layers': lambda config: jax.default_backend() != 'cpu',
  # Measured when a run starts and then kept, see `budget.py`.
  'train.step_seconds': lambda config: None,
  'optimizer.schedule_steps': budget.steps,
  'optimizer.warmup_steps': lambda c: c.optimizer.schedule_steps // 10,
  **{
    f'optimizer.{field}': _optimizer_default(field)
    for field in check.OF_OPTIMIZERS
  },
}


def resolve(
  config: ml_collections.ConfigDict,
  stored: Mapping[str, Any] | None = None,
  *,
  given: Collection[str] | None = None,
) -> ml_collections.FrozenConfigDict:
  """Fills in the defaults that depend on other fields, and checks everything.

  What depends on the devices is left to `check_model` and those after it.

  Args:
    config: of `experiments/base.py`, with overrides.
    stored: the nested dict of a run that is to be continued. Fields left at
      None take its values; other differences must be allowed ones.
    given: 'section.field' of those that the user sets for this run alone: of
      these each must be read. What else `config` holds, of an experiment's file
      or of a finished run, may be for other values of these. None: all that do
      not have their defaults.

  Raises:
    UserError: names the field, its value, what is allowed and the mend.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  check.check_given(config, resolved_later=_DEFAULTS)
  config.data.sources = sources.check_mixture(config.data.sources)
  old = flatten(_with_tuples(stored)) if stored else {}
  for field, default in _DEFAULTS.items():
    if check.get(config, field) is None:
      value = old.get(field)
      if value is None:
        value = default(config)
      section, _, name = field.rpartition('.')
      check.get(config, section)[name] = value
  # In place of several budgets, the one number that they come to.
  config.train.steps = budget.steps(config)
  check.check_resolved(config, resolved_later=_DEFAULTS)
  _check_read(config, old, given)
  if stored:
    _check_unchanged(config, old)
  return ml_collections.FrozenConfigDict(config)


def _check_read(config, old: Mapping[str, Any], given: Collection[str] | None):
  """Fills in `generate`, and refuses what was set and is not read."""
  decoding.settle(config, objectives.make(config).generates, given)
  values = flatten(config.to_dict())
  if given is None:
    defaults = flatten(base.get_config().to_dict())
    given = [field for field in values if values[field] != defaults.get(field)]
  # What a run has that goes on was not refused when it began.
  kept = [field for field in given if field in old]
  kept = {field for field in kept if values.get(field) == old[field]}
  unread.check(config, set(given) - kept)


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
  for field in set(check.OF_OPTIMIZERS) - set(reads):
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


def check_model(config):
  """Raises UserError unless the devices can run and split the model."""
  family = models.family(config)
  family.check_devices(config, objectives.make(config), jax.devices()[0])
  shape = sharding.mesh_shape(config, jax.device_count())
  for field, axis in family.splits.items():
    size = check.get(config, field)
    if size % shape[axis]:
      raise errors.UserError(
        f'{field}={size} is not divisible by mesh.{axis}={shape[axis]}; '
        'change one'
      )


def check_scoring(config):
  """Raises UserError unless text fits rows, which the devices can split."""
  check_model(config)
  objective = objectives.make(config)
  if objective.scorer != scoring_methods.NONE:
    scoring_methods.limits(scoring_methods.METHODS[objective.scorer], objective)
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
  size, shards = check.get(config, field), shape['data'] * shape['fsdp']
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
