"""Fields that were set and that nothing reads, given what else is set.

Of the section `generate` `decoding.py` has a table, and of `optimizer` those of
`fields.py`; here are the others.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lm import errors
from lm.config import check as check_lib
from lm.data import prepare, sources
from lm.data.text import cleaning
from lm.objectives import mixture_components

# Field -> the values of others with which alone it is read.
READ_WITH: dict[str, Mapping[str, tuple[Any, ...]]] = {
  'objective.inputs': {
    'objective.name': ('prefix', 'span', 'deshuffle', 'mixture', 'supervised'),
    'model.architecture': ('decoder',),
  },
  'objective.prefix.share': {'objective.prefix.split': ('fixed',)},
  'objective.diffusion.epsilon': {
    'objective.diffusion.estimator': ('bernoulli',)
  },
  'objective.span.mean': {
    'objective.span.noise': ('spans',),
    'objective.span.unit': ('token', 'word'),
  },
  'objective.supervised.target_share': {
    'model.architecture': ('encoder_decoder',)
  },
  'model.rotary_base': {'model.position': ('rotary',)},
  'optimizer.decay_fraction': {'optimizer.schedule': ('wsd',)},
  'evaluate.bound_samples': {'objective.name': ('diffusion',)},
}


def check(config, given: Collection[str]):
  """Raises UserError for a field of those given that is not read.

  Args:
    config: resolved.
    given: 'section.field' of those that the user set.
  """
  for field in sorted(given):
    if why := _unread(config, field):
      raise errors.UserError(f'{field}={check_lib.get(config, field)!r} {why}')


def check_overrides(
  overrides: Mapping[str, Any], reads: Collection[str], mode: str
):
  """Raises UserError for one of the section `evaluate` that is not in `reads`.

  Args:
    mode: that reads them, for messages.
  """
  for field, value in overrides.items():
    if field.split('.')[0] == 'evaluate' and field not in reads:
      raise errors.UserError(
        f'{field}={value!r} is not read by {mode}, which reads '
        f'{", ".join(reads)}; leave it out'
      )


def _unread(config, field: str) -> str | None:
  """Why a field is not read, and the mend; None where it is."""
  if field in _OF_DATA:
    return _OF_DATA[field](config, check_lib.get(config, field))
  if not field.startswith('objective.'):
    return _with_others(config, field)
  if config.show.objectives:
    return None  # Another one that is shown may read it.
  if field.count('.') == 2:
    if why := _of_other_objective(config, field):
      return why
    if config.objective.name == 'mixture':
      _check_components(config)
      return None  # Each component has values of its own.
  return _with_others(config, field)


def _with_others(config, field: str) -> str | None:
  for other, values in READ_WITH.get(field, {}).items():
    value = check_lib.get(config, other)
    if value not in values:
      allowed = ' or '.join(map(repr, values))
      return (
        f'is not read with {other}={value!r}; leave it out, or give {other}='
        f'{allowed}'
      )
  return None


def _of_other_objective(config, field: str) -> str | None:
  """Of 'objective.SECTION.field'; of a mixture the sections of components."""
  _, section, name = field.split('.')
  own = config.objective.name
  if section == own:
    return None
  if own != 'mixture':
    return (
      f'is not read with objective.name={own!r}; leave it out, or give '
      f'objective.name={section!r}'
    )
  found = [x for x in mixture_components.read(config) if x.objective == section]
  if any(name not in dict(component.fields) for component in found):
    return None
  return (
    'is not read: each of objective.mixture.components has its own or is of '
    'another objective; leave it out, or give it there'
  )


def _check_components(config):
  """As `check`, of the fields that each component of a mixture sets."""
  for number, component in enumerate(mixture_components.read(config)):
    own = component.config(config)
    for name, value in component.fields:
      field = f'objective.{component.objective}.{name}'
      if why := _with_others(own, field):
        raise mixture_components.component_error(
          number, f'{field}={value!r} {why}'
        )


def _of_files(config, value) -> str | None:
  del value
  if _reads_files(config.data):
    return None
  return (
    'is read of files alone, and there are none; leave it out, or give '
    '--config.data.source=files and data.path'
  )


def _reads_files(data) -> bool:
  return any(name not in sources.PACKAGED for name in _names(data))


def _names(data) -> list[str]:
  """Of the sources; of a mixture a path stands for files."""
  return [name for name, _ in data.sources] or [data.source]


def _of_free_splits(config, value) -> str | None:
  del value
  names = _names(config.data)
  if any(name not in sources.FIXED_SPLITS for name in names):
    return None
  return (
    f'is not read: data.source={names[0]!r} fixes what is held out; leave it '
    'out'
  )


def _of_text(config, value) -> str | None:
  # 0 asks for what is done with pairs anyway.
  if config.data.target_column is None or not value:
    return None
  return (
    'is not read: of the pairs of data.target_column='
    f'{config.data.target_column!r} near duplicates stay; leave it out'
  )


def _of_threads(config, value) -> str | None:
  del value
  if config.data.threads:
    return None
  return (
    'is not read with data.threads=0, which builds nothing ahead; leave it '
    'out, or give more threads'
  )


def _of_language(config, value) -> str | None:
  if config.data.language is None:
    return 'is not read without data.language; leave it out, or give that, too'
  return _of_cleaning('language')(config, value)


def _of_cleaning(*rules: str) -> Callable[[Any, Any], str | None]:
  """Of a field that these rules of cleaning read."""

  def why(config, value) -> str | None:
    del value
    data, pairs = config.data, config.data.target_column is not None
    on = [
      name
      for source in _names(data)
      for name, _ in cleaning.make(
        data,
        data.cleaning.rules
        if data.cleaning.rules is not None
        else prepare.default_rules(
          packaged=source in sources.PACKAGED, pairs=pairs
        ),
      )
    ]
    if any(rule in on for rule in rules):
      return None
    return (
      f'is not read: the rule {" or ".join(rules)} does not run (rules of '
      f'cleaning that do: {", ".join(dict.fromkeys(on)) or "none"}); leave it '
      'out, or give the rule in data.cleaning.rules'
    )

  return why


# Field of the data -> (config, its value) -> why it is not read, or None.
_OF_DATA: dict[str, Callable[[Any, Any], str | None]] = {
  'data.text_column': _of_files,
  'data.encoding': _of_files,
  'data.errors': _of_files,
  'data.document_bytes': _of_files,
  'data.held_out_fraction': _of_free_splits,
  'data.held_out_bytes': _of_free_splits,
  'data.near_duplicates': _of_text,
  'data.prefetch': _of_threads,
  'data.language': _of_cleaning('language', 'symbols'),
  'data.cleaning.scrub': _of_cleaning('scrub'),
  **{
    f'data.cleaning.{name}': _of_cleaning(rule)
    for rule, names in cleaning.FIELDS.items()
    for name in names
  },
  'data.cleaning.language_share': _of_language,
}
