"""What each way to generate reads: the table, and what is refused by it."""

import dataclasses
import json

import jax
import ml_collections
import pytest

from experiments import base
from lm import errors, models, objectives
from lm.config import decoding, resolve as config_lib
from lm.data import tokenizer
from lm.generation import strategies
from lm.runtime import sharding
from lm.training import loaded

# Way -> fields of a config whose objective has it.
OBJECTIVES = {
  'continuation': {'name': 'causal'},
  'target': {'name': 'supervised'},
  'spans': {'name': 'span'},
  'masks': {'name': 'masked'},
  'unmasking': {'name': 'diffusion'},
}
# Field -> a value that asks for something, other than its default.
VALUES = {
  'batch_size': 4,
  'max_tokens': 3,
  'beams': 2,
  'length_penalty': 1.0,
  'temperature': 0.5,
  'top_k': 5,
  'top_p': 0.5,
  'min_p': 0.1,
  'repetition_penalty': 2.0,
  'steps': 2,
  'order': 'random',
  'seed': 3,
  'samples_per_prompt': 2,
  'candidates': 3,
}
# What switches a field off -> the field, and words of the message.
SWITCHED = [
  ({}, 'length_penalty', 'generate.beams=1, which goes on .*beams=4 or so'),
  ({'temperature': 0.0}, 'top_k', 'generate.temperature=0.0, .* higher temp'),
  ({'temperature': 0.0}, 'top_p', 'generate.temperature=0.0, .* higher temp'),
  ({'temperature': 0.0}, 'min_p', 'generate.temperature=0.0, .* higher temp'),
  ({'temperature': 0.0}, 'seed', 'always the same; .* higher temperature'),
  ({'temperature': 0.0}, 'samples_per_prompt', 'always the same; leave'),
  ({'top_k': 1}, 'seed', 'generate.top_k=1, .* always the same; .* higher one'),
  ({'top_p': 0.0}, 'samples_per_prompt', 'generate.top_p=0.0, .* the same'),
  *(
    ({'beams': 2}, name, 'generate.beams=2, .* likeliest text; .*beams=1')
    for name in ('temperature', 'top_k', 'top_p', 'min_p', 'seed')
  ),
  ({'beams': 2}, 'samples_per_prompt', 'generate.beams=2, which searches'),
]
SWITCHED_UNMASKING = [
  ({'steps': 1}, 'order', 'generate.steps=1, which fills all .* more steps'),
  ({'temperature': 0.0}, 'seed', 'always the same; .* higher temperature'),
  ({'temperature': 0.0, 'steps': 1}, 'samples_per_prompt', 'always the same'),
]


def of_way(config, way: str, **settings):
  """The config of an objective with this way; settings as in flags."""
  config.objective.update(OBJECTIVES[way])
  if way == 'target':
    config.data.target_column = 'target'
  if way in ('target', 'spans'):
    config.model.architecture = 'decoder'
  config.generate.update(settings)
  return config


def mistake(config, given=None) -> str:
  with pytest.raises(errors.UserError) as caught:
    config_lib.resolve(config, given=given)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_the_table_has_every_field_and_way():
  # Read when training ends, whatever the way.
  fields = set(base.get_config().generate) - {'samples'}
  assert set(decoding.DEFAULTS) == fields == set(VALUES)
  assert set().union(*decoding.READS.values()) == fields
  assert set(decoding.READS) == set(strategies.STRATEGIES) == set(OBJECTIVES)
  # Those that switch others off are settled first.
  order = list(decoding.DEFAULTS)
  for switch in decoding.SWITCHES:
    for field in switch.fields:
      assert order.index(switch.by) < order.index(field)


@pytest.mark.parametrize('way', OBJECTIVES)
def test_what_a_way_reads_has_its_default_and_the_rest_is_none(config, way):
  resolved = config_lib.resolve(of_way(config, way))
  assert objectives.make(resolved).generates == (way,)
  found = {n: v for n, v in resolved.generate.items() if n != 'samples'}
  expected = dict.fromkeys(decoding.DEFAULTS)
  expected |= {n: decoding.DEFAULTS[n] for n in decoding.READS[way]}
  assert found == {**expected, 'length_penalty': None}
  # Settled again, as the config of a run folder is, it stays what it is.
  assert config_lib.resolve(resolved).generate == resolved.generate


@pytest.mark.parametrize('way', OBJECTIVES)
def test_a_field_that_a_way_does_not_read_is_refused(config, way):
  name = OBJECTIVES[way]['name']
  reads = decoding.READS[way]
  for field, value in VALUES.items():
    if field in reads:
      continue
    one = of_way(
      ml_collections.ConfigDict(config.to_dict()), way, **{field: value}
    )
    message = mistake(one)
    assert message.startswith(
      f"generate.{field}={value!r} is not read by objective.name='{name}', "
      'which reads batch_size, '
    )
    assert message.endswith('; leave it out')
    listed = message.split('which reads ')[1].removesuffix('; leave it out')
    assert set(listed.split(', ')) == set(reads)
    if field in decoding.NEUTRAL:
      one.generate[field] = decoding.NEUTRAL[field]
      assert config_lib.resolve(one).generate[field] is None


@pytest.mark.parametrize(('settings', 'field', 'words'), SWITCHED)
@pytest.mark.parametrize('way', ['continuation', 'target', 'spans'])
def test_what_another_setting_switches_off_is_refused(
  config, way, settings, field, words
):
  config = of_way(config, way, **settings)
  assert config_lib.resolve(config).generate[field] is None
  config.generate[field] = VALUES[field]
  with pytest.raises(errors.UserError, match=words) as caught:
    config_lib.resolve(config)
  assert str(caught.value).startswith(
    f'generate.{field}={VALUES[field]!r} is not read with generate.'
  )


@pytest.mark.parametrize(('settings', 'field', 'words'), SWITCHED_UNMASKING)
def test_what_steps_and_a_fixed_order_switch_off_is_refused(
  config, settings, field, words
):
  config = of_way(config, 'unmasking', **settings)
  assert config_lib.resolve(config).generate[field] is None
  config.generate[field] = VALUES[field]
  with pytest.raises(errors.UserError, match=words):
    config_lib.resolve(config)
  # Places that are filled in an order that is drawn differ by themselves.
  if field != 'order':
    config.generate.update(order='random', steps=2)
    assert config_lib.resolve(config).generate[field] == VALUES[field]


def test_an_objective_that_generates_nothing_reads_nothing(config):
  config = of_way(config, 'spans', temperature=0.5)
  config.objective.span.target = 'everything'
  assert 'generates nothing; leave it out' in mistake(config)
  config.generate.temperature = None
  resolved = config_lib.resolve(config).generate.to_dict()
  assert resolved.pop('samples') == 1
  assert not any(resolved.values())


def test_of_a_finished_run_only_what_is_given_now_is_judged(config, tmp_path):
  """And a config from when every field had a value can be loaded."""
  config_lib.save(config_lib.resolve(of_way(config, 'masks')), tmp_path)
  path = tmp_path / 'config.json'
  old = json.loads(path.read_text())
  old['generate'] = {**decoding.DEFAULTS, **VALUES, 'samples': 1}
  path.write_text(json.dumps(old))
  stored = ml_collections.ConfigDict(config_lib.load(tmp_path))
  resolved = config_lib.resolve(stored, given=())
  assert resolved.generate.candidates == VALUES['candidates']
  assert resolved.generate.temperature is None
  message = mistake(stored, given=['generate.temperature'])
  assert message.startswith('generate.temperature=0.5 is not read by')


def test_a_setting_of_now_takes_the_place_of_what_the_run_had(config):
  stored = config_lib.resolve(
    of_way(config, 'continuation', top_k=5, samples_per_prompt=2)
  ).to_dict()
  config = ml_collections.ConfigDict(stored)
  config.generate.beams = 4
  found = config_lib.resolve(config, given=['generate.beams']).generate
  assert found.length_penalty == decoding.DEFAULTS['length_penalty']
  assert (found.top_k, found.temperature, found.seed) == (None, None, None)
  # With one that was not given nothing is the user's mistake but the other.
  config.generate.temperature = 0.5
  message = mistake(config, given=['generate.temperature'])
  assert message.startswith('generate.temperature=0.5 is not read with gener')


def test_a_run_that_goes_on_has_what_is_given_now(config):
  config = of_way(config, 'continuation', temperature=0.0)
  stored = config_lib.resolve(config).to_dict()
  config.generate.update(temperature=None, top_k=3)
  found = config_lib.resolve(config, stored).generate
  assert found.top_k == 3
  assert found.temperature == decoding.DEFAULTS['temperature']


class Watched:
  """A config, or a section, of which it is noted what is read and not None."""

  def __init__(self, config, read: set[str]):
    self._config, self._read = config, read

  def __getattr__(self, name):
    value = getattr(self._config, name)
    if name == 'generate':
      return Watched(value, self._read)
    if value is not None:
      self._read.add(name)
    return value


# Way -> prompts of all kinds that it takes; two or more, for a whole batch.
PROMPTS = {
  'continuation': ('a', 'b'),
  'target': ('a', 'b'),
  'spans': ('a<extra_id_0>', 'b<extra_id_0>'),
  'masks': ('a[MASK]', 'b[MASK]'),
  'unmasking': ('a', 'b[MASK]'),
}


# Way -> settings, and whether to generate with them: a search has read all that
# it reads when it is made.
_LEFT_TO_RIGHT = [({}, True), ({'beams': 2}, False)]
SETTINGS = {
  'continuation': _LEFT_TO_RIGHT,
  'target': _LEFT_TO_RIGHT,
  'spans': _LEFT_TO_RIGHT,
  'masks': [({}, True)],
  'unmasking': [
    ({'steps': 2}, True),
    ({'steps': 1, 'temperature': 0.0}, True),
  ],
}


@pytest.mark.parametrize('way', OBJECTIVES)
def test_a_way_reads_what_the_table_says_and_nothing_else(config, way):
  """What is None cannot be computed with: no field is missing in the table."""
  config.model.num_layers = 1
  config.data.sequence_length = 16
  resolved = config_lib.resolve(of_way(config, way))
  objective = objectives.make(resolved)
  model = models.make(resolved, objective)
  run = loaded.LoadedModel(
    config=resolved,
    tokenizer=tokenizer.train('bytes', resolved.data.vocab_size, []),
    objective=objective,
    model=model,
    mesh=sharding.make_mesh(resolved, jax.devices()[:1]),
    params=model.init(jax.random.PRNGKey(0)),
    step=0,
  )
  read = set()
  for settings, runs in SETTINGS[way]:
    changed = ml_collections.ConfigDict(resolved)
    changed.generate.update(settings)
    given = [f'generate.{name}' for name in settings]
    settled = config_lib.resolve(changed, given=given)
    made = strategies.STRATEGIES[way].make(
      dataclasses.replace(run, config=Watched(settled, read))
    )
    if runs:
      made(PROMPTS[way])
  assert read & set(decoding.DEFAULTS) == set(decoding.READS[way])
