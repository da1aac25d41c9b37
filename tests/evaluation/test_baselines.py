"""xz and unigram figures against what they are defined by."""

import lzma

import numpy as np
import pytest

from lm.config import resolve as config_lib
from lm.data import prepare, tokenizer as tokenizer_lib
from lm.evaluation import baselines


@pytest.fixture
def prepared(config):
  return prepare.prepare(config_lib.resolve(config).data)


def test_xz_is_eight_times_the_ratio_of_sizes():
  text = b'some text, some more text, ' * 50
  expected = 8 * len(lzma.compress(text, preset=9)) / len(text)
  assert baselines.xz([text[:100], text[100:]]) == expected


def test_training_text_helps_and_only_its_surplus_counts():
  rng = np.random.default_rng(0)
  training = bytes(rng.integers(32, 127, 5000).tolist())
  known, unknown = (
    training[1000:3000],
    bytes(rng.integers(32, 127, 2000).tolist()),
  )
  assert baselines.xz_given_training(training, [known]) < 0.5
  assert baselines.xz_given_training(training, [unknown]) > 6
  assert baselines.xz([known]) > 6


def test_training_text_is_decoded_from_its_ids(prepared):
  tokenizer, train = prepared.tokenizer(), prepared.train()
  text = baselines.training_text(train, tokenizer)
  assert len(text) == prepared.manifest['bytes']['train']
  assert text.endswith(tokenizer.decode_bytes(train.read(len(train) - 1)[0]))
  assert baselines.training_text(train, tokenizer, limit=100) == text[-100:]


def test_unigram_is_a_distribution_over_text_and_the_end(prepared):
  tokenizer, train = prepared.tokenizer(), prepared.train()
  test = prepared.held_out('test')
  V = tokenizer.vocab_size
  ids = np.concatenate([train.read(d)[0] for d in range(len(train))])
  counts = np.bincount(ids, minlength=V).astype(float)
  possible = np.zeros(V, bool)
  possible[tokenizer_lib.FIRST_BYTE : len(tokenizer.pieces)] = True
  possible[tokenizer_lib.EOS] = True
  p = np.where(possible, counts + 1, 0)
  p /= p.sum()
  held_out = np.concatenate([test.read(d)[0] for d in range(len(test))])
  bits = -np.log2(p[held_out]).sum()
  expected = bits / prepared.manifest['bytes']['test']
  found = baselines.unigram(train, test, tokenizer)
  assert found == pytest.approx(expected, rel=1e-9)


def test_they_are_computed_once_beside_the_training(prepared, monkeypatch):
  first = baselines.Task(prepared).result()
  assert set(first) == {
    'xz_bits_per_byte',
    'xz_given_training_bits_per_byte',
    'unigram_bits_per_byte',
  }
  monkeypatch.setattr(baselines, 'compute', None)
  assert baselines.Task(prepared).result() == first


def test_an_error_beside_the_training_is_not_swallowed(config, monkeypatch):
  config.data.directory += '-unread'
  prepared = prepare.prepare(config_lib.resolve(config).data)

  def fails(prepared):
    raise RuntimeError('broken')

  monkeypatch.setattr(baselines, 'compute', fails)
  with pytest.raises(RuntimeError, match='broken'):
    baselines.Task(prepared).result()
