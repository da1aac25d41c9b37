"""Every declared field: what it may be, and what it has an effect with."""

import math

import ml_collections
import pytest
from helpers import settings

from experiments import base
from lm import errors, evaluate, evaluate_text, field, objectives
from lm.config import check, resolve as config_lib
from lm.report import reference

FIELDS = check.FIELDS
CHOICES = [name for name, one in FIELDS.items() if one.choices]
NUMBERS = [name for name, one in FIELDS.items() if one.least is not None]
OF_OBJECTIVES = [name for name in FIELDS if name.count('.') == 2]
OF_OBJECTIVES = [x for x in OF_OBJECTIVES if x.startswith('objective.')]
READ_BY_SOME = sorted(
  {x for s in objectives.OBJECTIVES.values() for x in s.reads}
)
READ_WITH = [
  (name, other if '.' in other else f'{name.rpartition(".")[0]}.{other}')
  for name, one in FIELDS.items()
  for other in one.read_with
]
FILES = {'data.source': 'files', 'data.path': 'a.txt'}
PAIRS = {**FILES, 'data.target_column': 'target'}
MEAN = ((1.0, 'R', 'span', (('mean', 8.0),)),)


def make(values):
  config = base.get_config()
  config.data.tokenizer = 'bytes'
  for name, value in values.items():
    field.put(config, name, value)
  return config


def mistake(values) -> str:
  """The one line that resolving ends in."""
  with pytest.raises(errors.UserError) as caught:
    config_lib.resolve(make(values))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def reader(name) -> dict:
  """What makes the config's objective one that reads a field."""
  known = [n for n, s in objectives.OBJECTIVES.items() if name in s.reads]
  if name in OF_OBJECTIVES:
    known = [name.split('.')[1]]
  own = known[0] if known else 'causal'
  pairs = objectives.OBJECTIVES[own].data == 'pairs'
  return {'objective.name': own, **(PAIRS if pairs else {})}


def other_value(name):
  """Neither the default, nor out of range."""
  declared = FIELDS[name]
  if declared.choices:
    return next(x for x in declared.choices if x != declared.default)
  if declared.kind is float:
    return (declared.default + declared.least) / 2
  return declared.default + 1 if declared.default else MEAN


def with_conditions(name) -> dict:
  """A config in which a field has an effect, set to another value."""
  values = reader(name)
  for other, allowed in FIELDS[name].read_with.items():
    other = other if '.' in other else f'{name.rpartition(".")[0]}.{other}'
    values[other] = allowed[0]
  return {**values, name: other_value(name)}


@pytest.mark.parametrize('name', FIELDS)
def test_a_declaration_is_whole(name):
  declared = FIELDS[name]
  assert declared.meaning.endswith('.')
  if declared.default is not None:
    field.check(name, declared.default, declared)
  else:
    assert declared.none or declared.where_read is not None
  known = isinstance(declared.default, bool | str | tuple | None)
  # The meshes' axes are checked against the devices.
  assert known or declared.least is not None or name.startswith('mesh.')
  text = reference.describe(name)
  assert text.startswith(f'  {name} = ')
  assert declared.allowed in ' '.join(text.split())


@pytest.mark.parametrize('name', CHOICES)
def test_an_unknown_choice_lists_the_choices(name):
  assert mistake({name: 'spam'}) == (
    f"unknown {name}='spam'; choose from {', '.join(FIELDS[name].choices)}"
  )


@pytest.mark.parametrize('name', NUMBERS)
def test_a_number_out_of_range_is_refused_with_the_range(name):
  declared = FIELDS[name]
  step = 1 if declared.kind is int else 1e-7
  values = [declared.least - step]
  allowed = f'at least {declared.least}'
  if declared.most is not None:
    values.append(declared.most + step)
    allowed = f'{declared.least} to {declared.most}'
  if declared.kind is float:
    values += [math.nan, math.inf, -math.inf]
  for value in values:
    message = mistake({name: value})
    assert message == f'{name}={value} is out of range: give {allowed}'


@pytest.mark.parametrize('name', FIELDS)
def test_none_and_another_type_are_refused(name):
  declared = FIELDS[name]
  if declared.default is not None:
    assert mistake({name: None}).startswith((f'{name}=None is', 'unknown '))
  wrong = 'spam' if declared.kind is not str else 3
  with pytest.raises(errors.UserError, match=f'{name}=.*(type|unknown|choose)'):
    field.check(name, wrong, declared)


@pytest.mark.parametrize('name', OF_OBJECTIVES)
def test_a_field_of_another_objective_is_refused(name):
  value, section = other_value(name), name.split('.')[1]
  assert mistake({name: value}) == (
    f"{name}={value!r} is not read with objective.name='causal'; leave it out, "
    f'or give objective.name={section!r}'
  )
  config_lib.resolve(make({name: value, 'show.objectives': (section,)}))
  config_lib.resolve(make(with_conditions(name)))


@pytest.mark.parametrize('name', READ_BY_SOME)
def test_what_only_some_objectives_read_names_them(name):
  message = mistake({name: other_value(name)})
  start = (
    f"{name}={other_value(name)!r} is not read with objective.name='causal'"
  )
  assert message.startswith(start)
  for known, spec in objectives.OBJECTIVES.items():
    assert (repr(known) in message.split('; ')[1]) == (name in spec.reads)
  config_lib.resolve(make(with_conditions(name)))


@pytest.mark.parametrize(('name', 'other'), READ_WITH)
def test_a_field_without_effect_beside_another_is_refused(name, other):
  values = with_conditions(name)
  config_lib.resolve(make(values))
  allowed = {**FIELDS[name].read_with}.get(other) or (
    FIELDS[name].read_with[other.rpartition('.')[2]]
  )
  known = FIELDS[other].choices
  if other == 'model.architecture':
    known = objectives.OBJECTIVES[values['objective.name']].architectures
  values[other] = wrong = next(x for x in known if x not in allowed)
  assert mistake(values) == (
    f'{name}={values[name]!r} is not read with {other}={wrong!r}; leave it '
    f'out, or give {other}={" or ".join(map(repr, allowed))}'
  )


# A setting -> what else is set -> with what it is read, if at all -> words.
IN_FILES = "data.source='files' data.path='a.txt'"
MIXTURE = "objective.name='mixture' model.architecture='decoder'"
COMPONENT = "objective.mixture.components=((1.0,'R','span',(('mean',8.0),)),)"
SHARE = "((0.5,'S','prefix',(('share',0.7),)),(0.5,'','causal',()))"
CASES = settings.table(rf"""
objective.span.rate=0.3 -> {MIXTURE} -> {MIXTURE} {COMPONENT}
  -> each of objective.mixture.components has its own
objective.masked.rate=0.3 -> {MIXTURE} -> show.objectives=('masked',)
  -> or is of another objective
objective.mixture.components={SHARE} -> {MIXTURE} -> never
  -> components\[0\]: objective.prefix.share=0.7 .*split='uniform'
{COMPONENT} -> -> {MIXTURE} -> name='mixture'
data.text_column='body' -> -> {IN_FILES} -> files alone, and there are none
data.encoding='gb18030' -> -> {IN_FILES} -> give --config.data.source=files
data.errors='skip' -> data.sources=(('sotu',1.0),)
  -> data.sources=(('sotu',1.0),('a.txt',1.0)) -> files alone
data.document_bytes=2048 -> -> {IN_FILES} -> files alone
data.held_out_fraction=0.1 -> -> data.source='stdlib'
  -> data.source='sotu' fixes what is held out
data.held_out_bytes=5000 -> -> {IN_FILES} -> 'sotu' fixes what is held out
data.near_duplicates=0.9 -> {IN_FILES} data.target_column='target' -> {IN_FILES}
  -> near duplicates stay
data.prefetch=3 -> data.threads=0 -> -> with data.threads=0
data.language='zh' -> data.cleaning.rules=('unicode',) ->
  -> the rule language or symbols does not run .* unicode\); leave it out
data.cleaning.scrub=True -> data.cleaning.rules=() ->
  -> the rule scrub does not run \(rules of cleaning that do: none\); leave
data.cleaning.min_words=10 -> -> {IN_FILES}
  -> length does not run .* unicode\); .* give the rule in data.cleaning.
data.cleaning.max_words=99 -> -> {IN_FILES} -> length does not run
data.cleaning.min_characters=9 -> -> {IN_FILES} -> length does not run
data.cleaning.max_digits=0.3 -> -> data.cleaning.rules=('unicode,symbols',)
  -> symbols does not run
data.cleaning.language_share=0.3 -> {IN_FILES} -> data.language='en'
  -> without data.language;
""")


@pytest.mark.parametrize(('given', 'others', 'read', 'words'), CASES)
def test_what_is_set_and_not_read_is_refused(given, others, read, words):
  given, others = settings.parse(given), settings.parse(others)
  with pytest.raises(errors.UserError, match=words) as caught:
    config_lib.resolve(make({**others, **given}))
  (name,) = given
  assert str(caught.value).startswith((f'{name}=', f'{name}['))
  config_lib.resolve(make(others))  # The default is no mistake.
  if read != 'never':
    config_lib.resolve(make({**settings.parse(read), **given}))


def test_every_condition_is_tried():
  tried = {name for given, *_ in CASES for name in settings.parse(given)}
  known = {name for name, one in FIELDS.items() if one.unread}
  assert {x for x in known if not x.startswith('generate.')} <= tried


def test_what_a_file_sets_may_be_for_other_objectives():
  """A sweep has one file, and the objective as a flag."""
  config = make({'objective.masked.rate': 0.3})
  config_lib.resolve(config, given=['objective.name'])
  with pytest.raises(errors.UserError, match=r'rate=0\.3 is not read'):
    config_lib.resolve(config, given=['objective.masked.rate'])


def test_a_run_is_continued_with_what_it_was_not_refused_for():
  config = make({'objective.masked.rate': 0.3, 'data.text_column': 'body'})
  stored = config_lib.resolve(config, given=()).to_dict()
  resolved = config_lib.resolve(config, stored)
  assert resolved.objective.masked.rate == 0.3
  # Given now it is a mistake, also where it is the default.
  old = ml_collections.ConfigDict(stored)
  with pytest.raises(errors.UserError, match='bound_samples=64 is not read'):
    config_lib.resolve(old, given=['evaluate.bound_samples'])


@pytest.mark.parametrize(
  ('run', 'more', 'name', 'reads'),
  [
    (evaluate.run, {}, 'batches', 'batch_size, .*, .*bound_samples;'),
    (evaluate.run, {}, 'baselines', '--mode=evaluate, which'),
    (evaluate_text.run, {'data.path': '-'}, 'windows', 'evaluate.batch_si'),
  ],
)
def test_evaluating_names_what_it_reads(tmp_path, run, more, name, reads):
  with pytest.raises(errors.UserError, match=f'{name}=3 is not .*{reads}'):
    run(tmp_path, {**more, f'evaluate.{name}': 3})
  with pytest.raises(errors.UserError, match='holds no run'):
    run(tmp_path, {**more, 'evaluate.batch_size': 3})


def test_the_reference_has_sections_fields_and_a_nearest_name():
  assert '  objective ' in reference.overview()
  assert '  objective.span ' in reference.describe('objective')
  assert 'objective.inputs = ' in reference.describe('objective')
  line = "| `objective.span.noise` | 'spans' | spans, iid | Where noise lies"
  assert line in reference.markdown('objective.span')
  with pytest.raises(
    errors.UserError, match=r'did you mean .*objective\.span\?'
  ):
    reference.describe('objective.spam')
