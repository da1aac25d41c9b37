"""Fields that are set and not read are told; what is read passes."""

import ml_collections
import pytest

from experiments import base
from lm import errors, evaluate, evaluate_text
from lm.config import resolve as config_lib, unread

SPAN = {'objective.name': 'span', 'model.architecture': 'decoder'}
MIXTURE = {'objective.name': 'mixture', 'model.architecture': 'decoder'}
FILES = {'data.source': 'files', 'data.path': 'a.txt'}
PAIRS = {**FILES, 'data.target_column': 'target'}
SEQUENCE = {**PAIRS, 'objective.name': 'supervised'}
SHARE = ((0.5, 'S', 'prefix', (('share', 0.7),)), (0.5, '', 'causal', ()))
FIXED = ((0.5, 'S', 'prefix', (('share', 0.7), ('split', 'fixed'))),)

# What is set, and what else -> with what else it is read, words of the message.
CASES = [
  ('objective.masked.rate', 0.3, {}, {'objective.name': 'masked'}, "='causal'"),
  ('objective.span.mean', 5.0, {}, SPAN, "give objective.name='span'"),
  (
    *('objective.inputs', 'causal', {}, SPAN),
    "objective.name='causal'; .*'prefix' or 'span' or 'mixture' or 'sequ",
  ),
  (
    *('objective.inputs', 'causal', {'objective.name': 'span'}, SPAN),
    "model.architecture='encoder_decoder'; .*='decoder'",
  ),
  (
    *('objective.prefix.share', 0.7, {'objective.name': 'prefix'}),
    {'objective.name': 'prefix', 'objective.prefix.split': 'fixed'},
    "objective.prefix.split='uniform'; leave it out, or give .*='fixed'",
  ),
  (
    *('objective.diffusion.epsilon', 0.1, {'objective.name': 'diffusion'}),
    {
      'objective.name': 'diffusion',
      'objective.diffusion.estimator': 'bernoulli',
    },
    "estimator='exact'; .*'bernoulli'",
  ),
  (
    *('objective.span.mean', 5.0, {**SPAN, 'objective.span.noise': 'iid'}),
    SPAN,
    "noise='iid'; .*='spans'",
  ),
  (
    *('objective.span.mean', 5.0, {**SPAN, 'objective.span.unit': 'sentence'}),
    {**SPAN, 'objective.span.unit': 'word'},
    "unit='sentence'; .*='token' or 'word'",
  ),
  (
    *('objective.supervised.target_share', 0.3),
    {**SEQUENCE, 'model.architecture': 'decoder'},
    SEQUENCE,
    "architecture='decoder'; .*'encoder_decoder'",
  ),
  (
    *('objective.span.rate', 0.3, MIXTURE),
    {
      **MIXTURE,
      'objective.mixture.components': ((1.0, 'R', 'span', (('mean', 8.0),)),),
    },
    'each of objective.mixture.components has its own',
  ),
  (
    *('objective.masked.rate', 0.3, MIXTURE),
    {'show.objectives': ('masked',)},
    'or is of another objective',
  ),
  (
    *('objective.mixture.components', SHARE, MIXTURE, None),
    r"components\[0\]: objective.prefix.share=0.7 .*split='uniform'",
  ),
  ('objective.mixture.components', FIXED, {}, MIXTURE, "name='mixture'"),
  (
    *('model.rotary_base', 5e5, {'model.position': 'learned'}, {}),
    "model.position='learned'; .*'rotary'",
  ),
  (
    *('optimizer.decay_fraction', 0.2, {}, {'optimizer.schedule': 'wsd'}),
    "schedule='cosine'; .*'wsd'",
  ),
  (
    *('evaluate.bound_samples', 8, {}, {'objective.name': 'diffusion'}),
    "objective.name='causal'; .*'diffusion'",
  ),
  ('data.text_column', 'body', {}, FILES, 'files alone, and there are none'),
  ('data.encoding', 'gb18030', {}, FILES, 'give --config.data.source=files'),
  (
    *('data.errors', 'skip', {'data.sources': (('sotu', 1.0),)}),
    {'data.sources': (('sotu', 1.0), ('a.txt', 1.0))},
    'files alone',
  ),
  ('data.document_bytes', 2048, {}, FILES, 'files alone'),
  (
    *('data.held_out_fraction', 0.1, {}, {'data.source': 'stdlib'}),
    "data.source='sotu' fixes what is held out",
  ),
  ('data.held_out_bytes', 5000, {}, FILES, "'sotu' fixes what is held out"),
  (
    *('data.near_duplicates', 0.9, PAIRS, FILES),
    "pairs of data.target_column='target' near duplicates stay",
  ),
  ('data.near_duplicates', 0.9, PAIRS, {}, 'near duplicates stay'),
  ('data.prefetch', 3, {'data.threads': 0}, {}, 'with data.threads=0'),
  (
    *('data.language', 'zh', {'data.cleaning.rules': ('unicode',)}, {}),
    r'the rule language or symbols does not run .* unicode\); leave it out',
  ),
  (
    *('data.cleaning.scrub', True, {'data.cleaning.rules': ()}, {}),
    r'the rule scrub does not run \(rules of cleaning that do: none\); leave',
  ),
  (
    *('data.cleaning.min_words', 10, {}, FILES),
    r'length does not run .* unicode\); .* give the rule in data.cleaning.',
  ),
  (
    *('data.cleaning.max_digits', 0.3, {}),
    {'data.cleaning.rules': ('unicode,symbols',)},
    'symbols does not run',
  ),
  (
    *('data.cleaning.language_share', 0.3, FILES),
    {'data.language': 'en'},
    'without data.language; ',
  ),
]


def make(fields):
  config = base.get_config()
  config.data.tokenizer = 'bytes'
  for field, value in fields.items():
    *sections, name = field.split('.')
    part = config
    for section in sections:
      part = part[section]
    part[name] = value
  return config


@pytest.mark.parametrize(('field', 'value', 'others', 'read', 'words'), CASES)
def test_what_is_set_and_not_read_is_told(field, value, others, read, words):
  config = make({**others, field: value})
  with pytest.raises(errors.UserError, match=words) as caught:
    config_lib.resolve(config)
  message = str(caught.value)
  assert message.startswith((f'{field}=', f'{field}['))
  assert '\n' not in message
  config_lib.resolve(make(others))  # The default is no mistake.
  if read is not None:
    config_lib.resolve(make({**read, field: value}))


def test_what_a_file_sets_may_be_for_other_objectives():
  """Of a sweep: one file, and the objective by a flag."""
  config = make({'objective.masked.rate': 0.3, 'generate.steps': 4})
  resolved = config_lib.resolve(config, given=['objective.name'])
  assert resolved.generate.steps is None
  for field in ('objective.masked.rate', 'generate.steps'):
    with pytest.raises(errors.UserError, match=f'{field}=.* is not read'):
      config_lib.resolve(config, given=[field])


def test_every_table_is_tried():
  tried = {field for field, *_ in CASES}
  assert set(unread.READ_WITH) <= tried
  # Fields of one rule are read alike.
  left = set(unread._OF_DATA) - tried
  assert left == {'data.cleaning.max_words', 'data.cleaning.min_characters'}


def test_a_run_from_before_goes_on_and_is_read_back():
  fields = {'objective.masked.rate': 0.3, 'data.text_column': 'body'}
  config = make(fields)
  stored = config_lib.resolve(config, given=()).to_dict()
  resolved = config_lib.resolve(config, stored)
  assert resolved.objective.masked.rate == 0.3
  old = ml_collections.ConfigDict(stored)
  config_lib.resolve(old, given=['evaluate.windows'])
  # Given now it is a mistake, also where it is the default.
  with pytest.raises(errors.UserError, match='bound_samples=64 is not read'):
    config_lib.resolve(old, given=['evaluate.bound_samples'])


@pytest.mark.parametrize(
  ('run', 'more', 'field', 'reads'),
  [
    (evaluate.run, {}, 'evaluate.batches', 'batch_size, .*, .*bound_samples;'),
    (evaluate.run, {}, 'evaluate.baselines', '--mode=evaluate, which'),
    (
      evaluate_text.run,
      {'data.path': '-'},
      'evaluate.windows',
      'evaluate.batch_si',
    ),
  ],
)
def test_evaluating_names_what_it_reads(tmp_path, run, more, field, reads):
  with pytest.raises(errors.UserError, match=f'{field}=3 is not .*{reads}'):
    run(tmp_path, {**more, field: 3})
  with pytest.raises(errors.UserError, match='holds no run'):
    run(tmp_path, {**more, 'evaluate.batch_size': 3})
