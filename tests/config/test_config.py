"""Every mistake in a config is one line, before anything is built."""

import collections
import dataclasses
import json
import re
import sys

import pytest
from absl import flags
from helpers import settings
from ml_collections import config_flags

from experiments import base
from lm import errors, field, models, objectives
from lm.config import check, compatible, resolve as config_lib
from lm.training import metrics, optimizer

# Fields for which None is an answer.
NONE = (
  *('data.directory', 'data.language', 'data.processes', 'data.target_column'),
  *('data.cleaning.rules', 'model.attention', 'objective.mixture.components'),
  # Without a limit, or not measured.
  *('train.tokens', 'train.flops', 'train.seconds', 'train.step_seconds'),
  # Not read where text is continued; see test_decoding.py.
  *('generate.candidates', 'generate.steps', 'generate.order'),
  'generate.length_penalty',  # without beams
)
# Settings -> what the message must name. Eight devices are there.
MISFITS = settings.table(r"""
model.width=30 -> model.width=30 is not divisible by model.num_heads=4
model.num_kv_heads=3 -> model.num_heads=4 is not divisible by
model.width=12 -> model.position='rotary' .*head_size=3 is odd
model.scale_readout=True model.tie_embeddings=False
  -> model.scale_readout=True .* model.tie_embeddings=False
model.heads=('spam',) -> unknown head 'spam' .* from pooler
model.heads=('pooler','pooler') -> model.heads=.* names one twice
data.batch_size=12 -> data.batch_size=12 .* 8 devices .*mesh.data=8
evaluate.batch_size=12 -> evaluate.batch_size=12 .* 8 devices
train.microbatches=2 -> data.batch_size=8 .* train.microbatches=2
mesh.data=3 -> mesh.data=3 .* 8 device.s.: the product must be 8
mesh.data=0 -> mesh.data=0: give a number of devices, or -1
mesh.fsdp=-1 -> mesh.data=-1 and mesh.fsdp=-1: only one
mesh.tensor=3 -> mesh.tensor=3 does not fit 8 device
mesh.tensor=8 -> model.num_heads=4 .* mesh.tensor=8
mesh.tensor=2 data.vocab_size=527 -> data.vocab_size=527 .* mesh.tensor=2
mesh.tensor=4 model.mlp_width=66 -> model.mlp_width=66 .* mesh.tensor=4
mesh.tensor=4 model.num_kv_heads=2 -> model.num_kv_heads=2 .*tensor=4
mesh.fsdp=8 model.width=12 model.num_heads=2 -> model.width=12 .* mesh.fsdp=8
model.attention='cudnn' -> ='cudnn' runs on GPU, not on cpu; .* leave .* blocks
model.attention='splash' -> ='splash' runs on TPU, not on cpu
data.vocab_size=525 -> data.vocab_size=525 .* needs at least 526
data.vocab_size=527 data.tokenizer='unigram' -> =527 .* needs at least 528
objective.name='masked' objective.masked.mask_share=0.9
  objective.masked.random_share=0.2
  -> mask_share=0.9 and objective.masked.random_share=0.2 are more than 1
data.language='xx' -> unknown data.language='xx'; choose a language
data.cleaning.rules=('spam',) -> rules has an unknown rule 'spam'
objective.name='span' objective.span.noise='iid' objective.span.unit='sentence'
  -> objective.span.noise='iid' .* objective.span.unit='sentence'
objective.name='span' data.sequence_length=4
  -> data.sequence_length=4 has no room .*'span' writes it; give at least 5
objective.name='span' objective.span.rate=0.5 data.sequence_length=2060
  -> data.sequence_length=2060 .* need 257 sentinels .* there are 256
objective.name='mixture'
  objective.mixture.components=((1.0,'R','span',(('rate',1.5),)),)
  -> components\[0\]: objective.span.rate=1.5 is out of range: give
data.tokenizer='no/such' -> data.tokenizer='no/such'; choose from
data.tokenizer='' -> data.tokenizer=''; choose from
data.text_column='' -> data.text_column='' names no column
data.target_column='' -> data.target_column='' is no column beside
data.target_column='text' -> ='text' is no column beside data.text_column='text'
data.target_column='de' objective.name='span'
  -> objective.name='span' is trained on text, but data.target_column='de' mak
model.architecture='encoder_decoder' objective.name='prefix' model.token_types=2
  -> model.token_types=2 is for one stack
data.target_column='de' data.language='zh'
  -> data.language='zh' drops documents .* data.target_column='de' makes pairs
data.target_column='de' data.cleaning.rules=('unicode','length')
  -> rules: 'length' judges documents, .* choose from unicode, html, whitesp
objective.name='supervised'
  -> objective.name='supervised' is trained on pairs, but data.target_column
data.sources=('sotu',2.0) -> data.sources: 'sotu' is no pair
data.sources=(('sotu',0),) -> the weight 0 of 'sotu' is out of range
show.objectives=('causal','spam')
  -> show.objectives has an unknown objective 'spam'; .* causal, .*, or all
optimizer.warmup_steps=50 train.steps=50
  -> optimizer.warmup_steps=50 leaves nothing
optimizer.schedule='wsd' train.steps=100 optimizer.warmup_steps=20
  optimizer.decay_fraction=0.81
  -> optimizer.decay_fraction=0.81 of .*optimizer.warmup_steps=20
""")


def with_fields(config, fields):
  for name, value in fields.items():
    field.put(config, name, value)
  return config


def mistake(config, stored=None) -> str:
  """The one line that resolving ends in."""
  with pytest.raises(errors.UserError) as caught:
    compatible.check_training(
      *config_lib.resolve_with_objective(config, stored)
    )
  message = str(caught.value)
  assert message
  assert '\n' not in message
  return message


@pytest.mark.parametrize(('fields', 'expected'), MISFITS)
def test_what_does_not_fit_together_names_both(config, fields, expected):
  message = mistake(with_fields(config, settings.parse(fields)))
  assert re.search(expected, message), message


def test_what_depends_on_other_fields_is_filled_in(config):
  # muon reads every field of the optimizer's.
  with_fields(config, {'model.activation': 'gelu', 'optimizer.name': 'muon'})
  for name in ('num_kv_heads', 'head_size', 'mlp_width'):
    with_fields(config, {f'model.{name}': None})
  with_fields(config, {'data.vocab_size': None})
  config.mesh.fsdp = 8
  resolved = config_lib.resolve(config)
  assert None not in [
    value
    for field, value in field.flatten(resolved.to_dict()).items()
    if field not in NONE
  ]
  assert resolved.data.vocab_size == 526
  assert resolved.model.num_kv_heads == resolved.model.num_heads
  assert resolved.model.head_size == 32 // 4
  assert resolved.model.mlp_width == 4 * 32
  assert resolved.optimizer.schedule_steps == config.train.steps


def test_resolving_changes_nothing_that_was_given(config):
  before = config.to_dict()
  config_lib.resolve(config)
  assert config.to_dict() == before


def test_saved_and_loaded_is_the_same_and_can_be_continued(config, tmp_path):
  """Tuples stay what they are on their way to disk and back."""
  config.data.cleaning.rules = ('unicode', 'html')
  config.data.sources = (('sotu', 2), ('a/*.txt', 0.5))
  resolved = config_lib.resolve(config)
  assert resolved.data.sources == (('sotu', 2.0), ('a/*.txt', 0.5))
  config_lib.save(resolved, tmp_path)
  stored = config_lib.load(tmp_path)
  assert stored == resolved.to_dict()
  assert config_lib.resolve(config, stored).to_dict() == resolved.to_dict()
  other = with_fields(
    config.copy_and_resolve_references(), {'data.cleaning.rules': ('unicode',)}
  )
  assert 'data.cleaning.rules' in mistake(other, stored)
  config.data.sources = (('sotu', 2), ('a/*.txt', 1))
  expected = """give --config.data.sources='(('"'"'sotu'"'"', 2.0), """
  assert expected in mistake(config, stored)


def test_a_mixture_of_sources_is_a_flag(monkeypatch):
  flag = "--config.data.sources=(('sotu',2.0),('stdlib',1.0))"
  # Where config_flags looks for overrides.
  monkeypatch.setattr(sys, 'argv', ['run.py', flag])
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', base.get_config(), flag_values=values
  )
  values(sys.argv)
  resolved = config_lib.resolve(values.config)
  assert resolved.data.sources == (('sotu', 2.0), ('stdlib', 1.0))


@pytest.mark.parametrize(
  ('given', 'names'),
  [
    ((), ('prefix',)),
    (('causal,prefix',), ('causal', 'prefix')),
    (('prefix', 'causal', 'prefix'), ('prefix', 'causal')),
    (('all',), tuple(objectives.OBJECTIVES)),
  ],
)
def test_objectives_to_show_are_names_or_all(config, given, names):
  with_fields(config, {'objective.name': 'prefix', 'show.objectives': given})
  assert check.shown_objectives(config_lib.resolve(config)) == names


def test_a_longer_budget_keeps_the_schedule_of_the_first_start(config):
  stored = config_lib.resolve(config).to_dict()
  config.train.steps *= 2
  resolved = config_lib.resolve(config, stored)
  assert resolved.optimizer.schedule_steps == stored['train']['steps']


# Fields that may differ when a run is continued, and another value of each.
DIFFERENT = [
  *(
    (name, {int: 99, float: 9.5}.get(one.kind, 'xla'))
    for name, one in check.FIELDS.items()
    if one.may_change and name != 'train.microbatches'
  ),
  *[('train.microbatches', 2), ('mesh.fsdp', 2), ('evaluate.batch_size', 8)],
  *[('generate.top_k', 3), ('show.tokens', 7)],
]


@pytest.mark.parametrize(('name', 'value'), DIFFERENT)
def test_some_fields_may_differ_when_a_run_is_continued(config, name, value):
  stored = config_lib.resolve(config).to_dict()
  resolved = config_lib.resolve(with_fields(config, {name: value}), stored)
  assert field.get(resolved, name) == value


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('seed', 1),
    ('model.width', 64),
    ('model.dropout', 0.1),
    ('optimizer.learning_rate', 1.0),
    ('data.batch_size', 16),
    ('data.path', 'elsewhere'),
  ],
)
def test_no_other_field_may(config, name, value):
  stored = config_lib.resolve(config).to_dict()
  old = field.get(stored, name)
  message = mistake(with_fields(config, {name: value}), stored)
  assert f'{name}={old!r}' in message
  assert repr(value) in message
  assert '--workdir' in message


@pytest.mark.parametrize(
  'content', [b'', b'{"seed": ', b'[]', b'3', b'\xff\xfe']
)
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=r'config\.json .*new folder'):
    config_lib.load(tmp_path)


def test_a_config_without_a_field_names_it(config):
  stored = json.loads(json.dumps(config.to_dict()))
  del stored['model']['norm']
  incomplete = type(config)(stored)
  assert 'model.norm' in mistake(incomplete)


def test_a_folder_without_a_run_says_what_to_do(tmp_path):
  with pytest.raises(errors.UserError, match=r'holds no run.*--mode=train'):
    config_lib.load(tmp_path)


def test_warmup_is_a_tenth_of_the_schedule_unless_given(config):
  config.optimizer.warmup_steps = None
  config.train.steps = 200
  assert config_lib.resolve(config).optimizer.warmup_steps == 20


def stored_as(config, folder, change):
  """The config of a run folder in which `change(dict)` wrote another one."""
  config_lib.save(config_lib.resolve(config), folder)
  path = folder / 'config.json'
  old = json.loads(path.read_text())
  change(old)
  path.write_text(json.dumps(old))
  return config_lib.load(folder)


def test_fields_younger_than_a_run_have_their_defaults(config, tmp_path):
  def change(old):
    del old['model']['scale_embeddings'], old['optimizer']['warmup_steps']

  stored = stored_as(config, tmp_path, change)
  assert stored['model']['scale_embeddings'] is False
  assert config_lib.resolve(config, stored).optimizer.warmup_steps == 2


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_only_what_the_optimizer_reads_has_a_value(config, name):
  config.optimizer.name = name
  resolved = config_lib.resolve(config).optimizer
  fields = ('weight_decay', 'b1', 'b2', 'epsilon', 'momentum')
  values = {f: resolved[f] for f in fields if resolved[f] is not None}
  assert values == optimizer.DEFAULTS[name]
  for other in set(fields) - set(values):
    wrong = with_fields(
      type(config)(config.to_dict()), {f'optimizer.{other}': 0.5}
    )
    assert mistake(wrong) == (
      f"optimizer.{other}=0.5 is not read by optimizer.name='{name}', which "
      f'reads {", ".join(optimizer.DEFAULTS[name])}; leave it out'
    )


def test_a_run_from_when_all_fields_had_values_is_continued(config, tmp_path):
  def change(old):
    old['optimizer'] |= {'b2': 0.97, 'momentum': 0.9}

  resolved = config_lib.resolve(config, stored_as(config, tmp_path, change))
  assert resolved.optimizer.b2 == 0.97
  assert resolved.optimizer.momentum is None


def test_warmup_and_decay_may_be_all_of_the_schedule(config):
  with_fields(config, {'optimizer.schedule': 'wsd', 'train.steps': 100})
  fields = {'optimizer.warmup_steps': 20, 'optimizer.decay_fraction': 0.8}
  cfg = config_lib.resolve(with_fields(config, fields)).optimizer
  assert cfg.warmup_steps + optimizer.decay_steps(cfg) == cfg.schedule_steps


def test_scoring_asks_nothing_of_training_batches(config):
  config.data.batch_size = 3
  resolved = config_lib.resolve_with_objective(config)
  compatible.check_scoring(*resolved)
  with pytest.raises(errors.UserError, match=r'data\.batch_size=3'):
    compatible.check_training(*resolved)


def test_a_family_must_obey_the_attention_of_the_objective(config):
  family = dataclasses.replace(
    models.FAMILIES['transformer'], attention=('causal',)
  )
  config.objective.name = 'masked'
  resolved, objective = config_lib.resolve_with_objective(config)
  words = "'masked' needs bidirectional attention, .*'transformer' has causal"
  with pytest.raises(errors.UserError, match=words):
    compatible.check_attention(resolved, objective, family)


def test_resolving_builds_an_objective_once(config, monkeypatch):
  """UL2's seven components are built once each, too."""
  built = []

  def counted(name, spec):
    def make(config, tokenizer=None):
      built.append(name)
      return spec.make(config, tokenizer)

    return dataclasses.replace(spec, make=make)

  for name, spec in objectives.OBJECTIVES.items():
    monkeypatch.setitem(objectives.OBJECTIVES, name, counted(name, spec))
  with_fields(
    config,
    {
      'objective.name': 'mixture',
      'model.architecture': 'decoder',
      'data.sequence_length': 256,
      'train.flops': 1e15,
    },
  )
  compatible.check_training(*config_lib.resolve_with_objective(config))
  expected = {'mixture': 1, 'span': 6, 'prefix': 1}
  assert collections.Counter(built) == expected


def test_a_folder_of_an_objective_that_was_renamed_is_read(
  pairs_config, tmp_path
):
  def change(old):
    old['objective']['name'] = 'sequence'
    old['objective']['sequence'] = old['objective'].pop('supervised')

  pairs_config.objective.name = 'supervised'
  pairs_config.objective.supervised.target_share = 0.25
  stored = stored_as(pairs_config, tmp_path, change)
  assert stored == config_lib.resolve(pairs_config).to_dict()
  config_lib.resolve(pairs_config, stored)
  terms = {'sequence': [3.0, 2.0]}
  found = metrics.Accumulator({'terms': terms}).state()['terms']
  assert found == {'supervised': [3.0, 2.0]}
