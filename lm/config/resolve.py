"""From a config as given to one that a run can trust, and to disk and back."""

import json
import pathlib
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from experiments import base
from lm import errors, field, models, objectives, types
from lm.config import check, compatible
from lm.data import sources
from lm.runtime import files
from lm.training import budget, optimizer

# Sections that may differ when a run is continued, see also `Field.may_change`.
_MAY_CHANGE = ('mesh', 'evaluate', 'generate', 'show')


def resolve(
  config: ml_collections.ConfigDict,
  stored: Mapping[str, Any] | None = None,
  *,
  given: Collection[str] | None = None,
) -> ml_collections.FrozenConfigDict:
  """Fills in the defaults that depend on other fields, and checks everything.

  What depends on the devices is left to `compatible.check_model` and those
  after it.

  Args:
    config: of `experiments/base.py`, with overrides.
    stored: the nested dict of a run that is to be continued. Fields left at
      None take its values; other differences must be allowed ones.
    given: 'section.field' of the fields that are set for this start; each must
      have an effect. Fields that an experiment's file or an earlier start set
      need not. None: all that differ from their defaults.

  Raises:
    UserError: names the field, its value, what is allowed and the mend.
  """
  return resolve_with_objective(config, stored, given=given)[0]


def resolve_with_objective(
  config: ml_collections.ConfigDict,
  stored: Mapping[str, Any] | None = None,
  *,
  given: Collection[str] | None = None,
) -> tuple[ml_collections.FrozenConfigDict, types.Objective]:
  """`resolve`, and the config's objective, which knows no tokenizer."""
  config = ml_collections.ConfigDict(config.to_dict())
  check.values(config)
  config.data.sources = sources.check_mixture(config.data.sources)
  old = field.flatten(_with_tuples(stored)) if stored else {}
  _derive(config, old, ('data', 'objective', 'model', 'train'))
  family = models.family(config)
  compatible.compatible(config, objectives.spec(config), family)
  objective = objectives.make(config)
  compatible.check_attention(config, objective, family)
  # From here on, `train.steps` is the smallest of all budgets.
  config.train.steps = budget.steps(config, objective)
  _derive(config, old, ('optimizer',))
  check.values(config)
  check.settle(config, objective.generates, given)
  check.effects(config, _to_be_read(config, old, given))
  if stored:
    _check_unchanged(config, old)
  return ml_collections.FrozenConfigDict(config), objective


def save(config, workdir: pathlib.Path):
  """Writes WORKDIR/config.json, whole or not at all."""
  files.write_json(workdir / 'config.json', config.to_dict())


def load(workdir: pathlib.Path) -> dict[str, Any]:
  """The nested dict in WORKDIR/config.json, with the names of today.

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
  config = _renamed(_with_tuples(config))
  # Fields that are younger than the run have their defaults.
  config = _merged(base.get_config().to_dict(), config)
  # In older runs every optimizer had a value for each of these.
  reads = optimizer.DEFAULTS.get(config['optimizer']['name'], {})
  for name in set(optimizer.READ_BY_SOME) - set(reads):
    config['optimizer'][name] = None
  return config


def _derive(config, old: Mapping[str, Any], sections: Collection[str]):
  """Fills in the defaults of some sections; a run keeps what it has."""
  for name, declared in check.FIELDS.items():
    if name.split('.')[0] not in sections or declared.derive is None:
      continue
    if field.get(config, name) is None:
      value = old.get(name)
      field.put(
        config, name, declared.derive(config) if value is None else value
      )


def _to_be_read(
  config, old: Mapping[str, Any], given: Collection[str] | None
) -> set[str]:
  """Names of the fields that must have an effect, see `resolve`."""
  values = field.flatten(config.to_dict())
  if given is None:
    defaults = {name: one.default for name, one in check.FIELDS.items()}
    given = [name for name in defaults if values[name] != defaults[name]]
  # Values of a continued run were checked when it began.
  return {
    name for name in given if name not in old or values.get(name) != old[name]
  }


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
  """A stored config with the names that objectives have today."""
  known = {**config.get('objective', {})}
  for old, new in objectives.RENAMED.items():
    if old in known:
      known[new] = known.pop(old)
    if known.get('name') == old:
      known['name'] = new
  renamed = {**config, 'objective': known}
  if shown := config.get('show', {}).get('objectives'):
    shown = tuple(objectives.RENAMED.get(name, name) for name in shown)
    renamed['show'] = {**config['show'], 'objectives': shown}
  return renamed


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


def _check_unchanged(config, old: Mapping[str, Any]):
  new = field.flatten(config.to_dict())
  for name in sorted(set(new) | set(old)):
    declared = check.FIELDS.get(name)
    if name.split('.')[0] in _MAY_CHANGE or (declared and declared.may_change):
      continue
    if declared and declared.derive and old.get(name) is None:
      continue  # Younger than the run: resolved only now.
    if new.get(name) != old.get(name):
      was = old.get(name)
      mend = f'give --config.{name}={shlex.quote(str(was))}'
      if was is None:
        mend = f'leave --config.{name} out'
      raise errors.UserError(
        f'the run in this folder was made with {name}={was!r}, not '
        f'{new.get(name)!r}; {mend} to continue it, or another --workdir for a '
        'new run'
      )
