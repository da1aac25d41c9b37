"""Source to target: the examples of the docstrings, and a run that learns."""

import random

import numpy as np
import pytest
from helpers import docstrings, runs

from lm import objectives, train, types
from lm.config import resolve as config_lib
from lm.data import tokenizer
from lm.objectives import supervised
from lm.training import metrics

BOS, EOS, SEP, PAD = (
  *(tokenizer.BOS, tokenizer.EOS),
  *(tokenizer.SEP, tokenizer.PAD),
)


def make(config, architecture, **fields):
  config.objective.name = 'supervised'
  config.data.target_column = 'target'
  config.model.architecture = architecture
  config.objective.supervised.update(fields)
  # Also with fields that one architecture alone reads.
  return objectives.make(config_lib.resolve(config, given=()))


def record(ids):
  ids = np.array(ids, np.int32)
  return types.Record(ids_L=ids, word_L=np.arange(len(ids), dtype=np.int32))


def corrupt(objective, ids):
  (example,) = objective.corrupt(record(ids), np.random.default_rng(0))
  return example


SHOWN, ON_A_DECODER = docstrings.examples(supervised.split_pair)
IDS = SHOWN['ids']


def test_example_of_the_docstring_on_an_encoder_decoder(config):
  objective = make(config, 'encoder_decoder')
  example = corrupt(objective, IDS)
  inputs, targets = supervised.split_pair(record(IDS), None)
  np.testing.assert_array_equal(inputs, SHOWN['inputs'])
  np.testing.assert_array_equal(targets, SHOWN['targets'])
  docstrings.check(example, {'targets': SHOWN['targets']})
  assert example.encoder_tokens_M.tolist() == [BOS, *SHOWN['inputs']]
  assert example.tokens_L.tolist() == [BOS, *SHOWN['targets'][:-1]]
  assert example.weights_L.tolist() == [1] * len(targets)
  assert objective.attention == 'causal'
  assert objective.pairs


def test_example_of_the_docstring_on_a_decoder(config):
  objective = make(config, 'decoder')
  example = corrupt(objective, IDS)
  assert example.encoder_tokens_M is None
  docstrings.check(example, ON_A_DECODER)
  assert objective.attention == 'prefix'
  config.objective.inputs = 'causal'
  causal = make(config, 'decoder')
  assert causal.attention == 'causal'
  assert corrupt(causal, IDS).order_L.tolist() == list(range(6))


def test_an_encoder_decoder_is_the_default(config):
  config.objective.name, config.data.target_column = 'supervised', 'target'
  resolved = config_lib.resolve(config)
  assert resolved.model.architecture == 'encoder_decoder'


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_a_pair_takes_what_its_size_says(config, architecture):
  objective = make(config, architecture)
  rng = np.random.default_rng(1)
  for _ in range(50):
    source, target = rng.integers(270, 526, 30), rng.integers(270, 526, 30)
    inputs, targets = rng.integers(2, 20, 2).tolist()
    ids = [*source[: inputs - 1], SEP, *target[: targets - 1], EOS]
    (size,) = objective.sizes((inputs, targets), rng)
    example = corrupt(objective, ids)
    assert size.tokens == len(example.tokens_L)
    assert size.predictions == np.sum(example.weights_L > 0) == targets
    if architecture == 'encoder_decoder':
      assert size.encoder_tokens == len(example.encoder_tokens_M)


@pytest.mark.parametrize(
  ('share', 'expected'), [(0.5, (16, 16)), (0.25, (8, 24)), (0.99, (31, 1))]
)
def test_the_sides_share_a_row(config, share, expected):
  capacity = make(config, 'encoder_decoder', target_share=share).capacity
  assert (capacity.tokens, capacity.encoder_tokens) == expected
  assert capacity.positions == config.data.sequence_length
  capacity = make(config, 'decoder', target_share=share).capacity
  assert (capacity.tokens, capacity.encoder_tokens) == (32, 0)


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_a_source_is_continued_as_in_training(config, architecture):
  """Without its SEP, as a prompt is typed."""
  objective = make(config, architecture)
  trained = corrupt(objective, IDS)
  found = objective.continuation(np.array([10, 11]), np.array([20, 21, EOS]))
  for name, value in vars(trained).items():
    np.testing.assert_array_equal(getattr(found, name), value)
  prompt = objective.continuation(np.array([10, 11]), np.array([PAD]))
  assert prompt.weights_L.tolist()[-1] == 1
  assert prompt.tokens_L[-1] == (SEP if architecture == 'decoder' else BOS)


@pytest.fixture
def translation(config, tmp_path):
  """Numbers into other words, which a few steps begin to teach."""
  words = {'ab': 'xyz', 'cd': 'uv', 'e': 'w'}
  rng = random.Random(0)
  path = tmp_path / 'pairs.tsv'
  with open(path, 'w', encoding='utf-8') as f:
    print('text', 'target', sep='\t', file=f)
    for _ in range(400):
      source = rng.choices(list(words), k=rng.randint(1, 5))
      target = [words[word] for word in source]
      print(' '.join(source), ' '.join(target), sep='\t', file=f)
  config.data.path, config.data.target_column = str(path), 'target'
  config.data.directory = str(tmp_path / 'prepared')
  config.model.architecture = 'decoder'
  config.model.num_layers = 1
  config.optimizer.learning_rate = 1e-2
  config.optimizer.schedule_steps = 24
  config.train.update(evaluate_every=12, checkpoint_every=12, steps=24)
  return config


@pytest.fixture
def unfinished(monkeypatch):
  """Runs that end after their last step: its targets have no scorer."""
  monkeypatch.setattr(train, '_finish', lambda *_: None)


def test_a_run_learns_and_goes_on_as_if_never_stopped(
  translation, tmp_path, unfinished
):
  translation.objective.name = 'supervised'
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  train.run(translation, whole, 'python')
  lines = [x for x in metrics.read(whole) if x['split'] == 'train']
  assert lines[-1]['loss/supervised'] == lines[-1]['loss']
  assert lines[-1]['loss'] < 0.5 * lines[0]['loss']
  # No source is predicted.
  assert 0 < lines[-1]['loss_tokens'] < 0.6 * lines[-1]['tokens']
  translation.train.steps = 12
  train.run(translation, stopped, 'python')
  translation.train.steps = 24
  train.run(translation, stopped, 'python')
  runs.assert_same_state(runs.final_state(stopped), runs.final_state(whole))
  assert runs.lines(stopped)[-2:] == runs.lines(whole)[-2:]


def test_a_causal_run_on_pairs_is_scored_and_shows_its_targets(
  translation, tmp_path
):
  """Without a window to score, and with the separator as what is read."""
  translation.generate.samples = 2
  train.run(translation, tmp_path / 'run', 'python')
  final = metrics.read(tmp_path / 'run')[-1]
  assert final['split'] == 'final'
  assert 0 < final['bits_per_byte'] < 16
  assert 'suffix_bits_per_byte' not in final
  blocks = (tmp_path / 'run' / 'samples.txt').read_text('utf-8').split('===')
  for block in blocks[2::2]:
    source, generated, true = block.strip('\n').split('\n')
    words = {'ab': 'xyz', 'cd': 'uv', 'e': 'w'}
    assert generated.startswith('[generated] ')
    assert true == '[true] ' + ' '.join(words[x] for x in source.split())
