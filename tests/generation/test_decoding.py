"""What each strategy reads of the section `generate`, and what is a warning."""

import dataclasses
import json
import re

import jax
import ml_collections
import pytest
from helpers import settings

from experiments import base
from lm import models, objectives
from lm.config import check, resolve as config_lib
from lm.data import tokenizer
from lm.generation import strategies
from lm.runtime import sharding
from lm.training import loaded

FIELDS = {
  name: one
  for name, one in base.FIELDS['generate'].items()
  if name != 'samples'  # Read when training ends, whatever the strategy.
}

# Strategy -> fields of a config whose objective has it.
OBJECTIVES = {
  'continuation': {'name': 'causal'},
  'target': {'name': 'supervised'},
  'spans': {'name': 'span'},
  'masks': {'name': 'masked'},
  'unmasking': {'name': 'diffusion'},
}
# A value of each field that asks for something, other than its default.
VALUES = settings.parse("""
batch_size=4 max_tokens=3 beams=2 length_penalty=1.0 temperature=0.5 top_k=5
top_p=0.5 min_p=0.1 repetition_penalty=2.0 steps=2 order='random' seed=3
samples_per_prompt=2 candidates=3
""")
# What switches fields off -> the fields -> words of the message.
SWITCHED = settings.table("""
beams=1 -> length_penalty -> generate.beams=1, which continues .*beams=4 or so
temperature=0.0 -> top_k top_p min_p -> generate.temperature=0.0, .* higher temp
temperature=0.0 -> seed -> always the same; .* higher temperature
temperature=0.0 -> samples_per_prompt -> always the same; leave
top_k=1 -> seed -> generate.top_k=1, .* always the same; .* higher one
top_p=0.0 -> samples_per_prompt -> generate.top_p=0.0, .* the same
beams=2 -> temperature top_k top_p min_p seed
  -> generate.beams=2, .* likeliest text; .*beams=1
beams=2 -> samples_per_prompt -> generate.beams=2, which searches
""")
SWITCHED_UNMASKING = settings.table("""
steps=1 -> order -> generate.steps=1, which fills all .* more steps
temperature=0.0 -> seed -> always the same; .* higher temperature
temperature=0.0 steps=1 -> samples_per_prompt -> always the same
""")


def of_way(config, way: str, **changes):
  """The config of an objective with this strategy; changes as in flags."""
  config.objective.update(OBJECTIVES[way])
  if way == 'target':
    config.data.target_column = 'target'
  if way in ('target', 'spans'):
    config.model.architecture = 'decoder'
  config.generate.update(changes)
  return config


@pytest.fixture
def resolve(capsys):
  """resolve(config, given=None) -> resolved `generate`, lines of warnings."""

  def run(config, given=None):
    check.warn.cache_clear()
    resolved = config_lib.resolve(config, given=given).generate
    return resolved, capsys.readouterr().err.splitlines()

  return run


def test_the_declarations_have_every_field_and_strategy():
  read = {name for one in strategies.STRATEGIES.values() for name in one.reads}
  assert read == set(FIELDS) == set(VALUES)
  assert set(strategies.STRATEGIES) == set(OBJECTIVES)


@pytest.mark.parametrize('way', OBJECTIVES)
def test_what_is_read_has_its_default_and_the_rest_is_none(
  config, way, resolve
):
  config = of_way(config, way)
  found, warnings = resolve(config)
  reads = strategies.STRATEGIES[way].reads
  expected = {n: one.where_read for n, one in FIELDS.items() if n in reads}
  expected |= {'length_penalty': None, 'samples': 1}
  assert found.to_dict() == {**dict.fromkeys(FIELDS), **expected}
  # Settled again, as the config of a run folder is, it stays what it is.
  again = ml_collections.ConfigDict(config_lib.resolve(config))
  assert resolve(again) == (found, warnings) == (found, [])


@pytest.mark.parametrize('way', OBJECTIVES)
def test_a_field_that_a_strategy_does_not_read_is_a_warning(
  config, way, resolve
):
  objective = f"objective.name='{OBJECTIVES[way]['name']}'"
  reads = strategies.STRATEGIES[way].reads
  listed = ', '.join(name for name in FIELDS if name in reads)
  for name in set(FIELDS) - set(reads):
    one = ml_collections.ConfigDict(config.to_dict())
    found, warnings = resolve(of_way(one, way, **{name: VALUES[name]}))
    assert warnings == [
      f'warning: generate.{name}={VALUES[name]!r} is not read by {objective}, '
      f'which reads {listed}; leave it out'
    ]
    assert found[name] is None
    one.generate[name] = FIELDS[name].neutral
    assert resolve(one) == (found, [])


@pytest.mark.parametrize(
  ('way', 'others', 'names', 'words'),
  [
    *(('continuation', *case) for case in SWITCHED),
    # The check is the same for all that draw from left to right.
    *((way, *SWITCHED[0]) for way in ('target', 'spans')),
    *(('unmasking', *case) for case in SWITCHED_UNMASKING),
  ],
)
def test_what_another_setting_switches_off_is_a_warning(
  config, way, others, names, words, resolve
):
  for name in names.split():
    one = ml_collections.ConfigDict(config.to_dict())
    one = of_way(one, way, **settings.parse(others))
    found, warnings = resolve(one)
    assert (found[name], warnings) == (None, [])
    one.generate[name] = value = VALUES[name]
    again, (line,) = resolve(one)
    assert again == found
    start = f'warning: generate.{name}={value!r} is not read with .*'
    assert re.match(start + words, line)
    # Places that are filled in an order that is drawn differ by themselves.
    if way == 'unmasking' and name != 'order':
      one.generate.update(order='random', steps=2)
      again, warnings = resolve(one)
      assert (again[name], warnings) == (value, [])


def test_an_objective_that_generates_nothing_reads_nothing(config, resolve):
  config = of_way(config, 'spans', temperature=0.5)
  config.objective.span.target = 'everything'
  found, (line,) = resolve(config)
  assert line.endswith('generates nothing; leave it out')
  assert found.to_dict() == {**dict.fromkeys(FIELDS), 'samples': 1}


def test_of_a_finished_run_only_what_is_given_now_is_judged(
  config, tmp_path, resolve
):
  """And a config from when every field had a value can be loaded."""
  config_lib.save(config_lib.resolve(of_way(config, 'masks')), tmp_path)
  path = tmp_path / 'config.json'
  old = json.loads(path.read_text())
  old['generate'] = {**VALUES, 'samples': 1}
  path.write_text(json.dumps(old))
  stored = ml_collections.ConfigDict(config_lib.load(tmp_path))
  found, warnings = resolve(stored, given=())
  assert found.candidates == VALUES['candidates']
  assert (found.temperature, warnings) == (None, [])
  _, (line,) = resolve(stored, given=['generate.temperature'])
  assert line.startswith('warning: generate.temperature=0.5 is not read by')


def test_a_setting_of_now_takes_the_place_of_what_the_run_had(config, resolve):
  stored = config_lib.resolve(
    of_way(config, 'continuation', top_k=5, samples_per_prompt=2)
  ).to_dict()
  config = ml_collections.ConfigDict(stored)
  config.generate.beams = 4
  found, warnings = resolve(config, given=['generate.beams'])
  assert found.length_penalty == FIELDS['length_penalty'].where_read
  assert (found.top_k, found.temperature, found.seed) == (None, None, None)
  assert warnings == []
  config.generate.temperature = 0.5
  _, (line,) = resolve(config, given=['generate.temperature'])
  assert line.startswith('warning: generate.temperature=0.5 is not read with')


def test_a_continued_run_has_what_is_given_now(config):
  config = of_way(config, 'continuation', temperature=0.0)
  stored = config_lib.resolve(config).to_dict()
  config.generate.update(temperature=None, top_k=3)
  found = config_lib.resolve(config, stored).generate
  assert (found.top_k, found.temperature) == (3, 0.8)


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
def test_a_strategy_reads_what_it_declares_and_nothing_else(config, way):
  """What is None cannot be computed with: no declaration lacks a field."""
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
    params=jax.jit(model.init)(jax.random.PRNGKey(0)),
    step=0,
  )
  read = set()
  for changes, runs in SETTINGS[way]:
    changed = ml_collections.ConfigDict(resolved)
    changed.generate.update(changes)
    given = [f'generate.{name}' for name in changes]
    settled = config_lib.resolve(changed, given=given)
    made = strategies.STRATEGIES[way].make(
      dataclasses.replace(run, config=Watched(settled, read))
    )
    if runs:
      made(PROMPTS[way])
  assert read & set(FIELDS) == set(strategies.STRATEGIES[way].reads)
