"""Exact scoring: a proper distribution, each byte once, no batch effects."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import causal_row

from lm import models, objectives
from lm.config import resolve as config_lib
from lm.data import store, tokenizer as tokenizer_lib, windows
from lm.evaluation import (
  passages as passages_lib,
  scorer as scorer_lib,
  scoring_methods,
)
from lm.models import readout
from lm.runtime import sharding


@dataclasses.dataclass
class Setting:
  config: object
  tokenizer: tokenizer_lib.Tokenizer
  objective: object
  model: object
  mesh: object
  params: object
  scorers: dict = dataclasses.field(default_factory=dict)

  def scorer(self, **settings):
    """Compiles once for the same settings."""
    key = tuple(settings.items())
    if key not in self.scorers:
      self.scorers[key] = scorer_lib.Scorer(
        scoring_methods.METHODS['exact'],
        self.objective,
        self.model,
        self.mesh,
        **{'batch_size': 8, **settings},
      )
    return self.scorers[key]

  def score(self, passages, *, end=True, **settings):
    allowed = self.tokenizer.allowed_ids(end=end)
    return self.scorer(**settings)(self.params, passages, allowed)


@pytest.fixture
def setting(config):
  resolved = config_lib.resolve(config)
  objective = objectives.make(resolved)
  model = models.make(resolved, objective)
  return Setting(
    resolved,
    tokenizer_lib.train('bytes', resolved.data.vocab_size, []),
    objective,
    model,
    sharding.make_mesh(resolved),
    jax.jit(model.init)(jax.random.PRNGKey(0)),
  )


def passage(tokenizer, text, context=''):
  scored = tokenizer.encode(text)
  return passages_lib.Passage(
    tokenizer.encode(context), scored, len(text.encode())
  )


def test_windows_of_the_docstring():
  found = list(passages_lib.cut_windows(0, 10, passages_lib.Limits(4, 4, 4)))
  assert [start for start, _, _ in found] == [0, 0, 2, 4, 6]
  assert [scored for _, scored, _ in found] == [0, 2, 4, 6, 8]
  assert [stop for _, _, stop in found] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize('context', [0, 1, 5, 40])
@pytest.mark.parametrize('length', [2, 3, 8, 33])
def test_windows_score_each_id_once_with_half_a_window_before(context, length):
  total = context + 57
  scored = []
  limits = passages_lib.Limits(length, length, length)
  for start, first, stop in passages_lib.cut_windows(context, total, limits):
    assert 0 < stop - start <= length
    assert first - start >= min(first, length - length // 2)
    scored += range(first, stop)
  assert scored == list(range(context, total))


@pytest.mark.parametrize('context', [0, 3, 20, 40])
@pytest.mark.parametrize('sizes', [(20, 6, 26), (20, 1, 26), (5, 9, 14)])
def test_windows_keep_to_the_limits_of_each_side(context, sizes):
  limits = passages_lib.Limits(*sizes)
  total, scored = context + 30, []
  for start, first, stop in passages_lib.cut_windows(context, total, limits):
    assert min(first, limits.context // 2) <= first - start <= limits.context
    assert 0 < stop - first <= limits.scored
    scored += range(first, stop)
  assert scored == list(range(context, total))


def test_what_fits_is_one_window():
  limits = passages_lib.Limits(8, 8, 8)
  assert list(passages_lib.cut_windows(2, 8, limits)) == [(0, 2, 8)]
  assert list(passages_lib.cut_windows(3, 9, limits)) == [(0, 3, 7), (1, 7, 9)]
  assert list(passages_lib.cut_windows(3, 3, limits)) == []


def test_bits_are_those_of_the_chain_rule(setting):
  """A short text: one window, so plain log-probabilities of the model."""
  ids = setting.tokenizer.encode('Words, words')
  found = setting.score([passages_lib.Passage(ids[:0], ids, 12)])
  batch = causal_row(ids)
  logits = setting.model.logits(
    setting.params, setting.model.hidden(setting.params, batch)
  )
  allowed = setting.tokenizer.allowed_ids(end=True)
  log_p = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
  costs = -np.asarray(log_p[0, jnp.arange(12), ids]) / np.log(2)
  expected = float(costs.sum())
  assert found.bits == pytest.approx(expected, rel=1e-5)
  assert found.bits_per_byte() == pytest.approx(expected / 12, rel=1e-5)
  assert found.perplexity() == pytest.approx(2 ** (expected / 12), rel=1e-5)
  [[part]] = setting.scorer().batches(
    setting.params, [passages_lib.Passage(ids[:0], ids, 12)], allowed
  )
  np.testing.assert_allclose(part.bits_n, costs, rtol=1e-4)


@pytest.mark.parametrize('end', [True, False])
def test_next_token_probabilities_sum_to_one_over_what_may_follow(setting, end):
  context = setting.tokenizer.encode('Abc')
  allowed = np.flatnonzero(setting.tokenizer.allowed_ids(end=end))
  passages = [
    passages_lib.Passage(context, np.array([i], np.int32), 1) for i in allowed
  ]
  scorer_bits = [setting.score([p], end=end).bits for p in passages[:3]]
  # One call for all of them: bits of each row are summed, so ask one by one
  # for some and through the model for the whole distribution.
  batch = causal_row(np.append(context, [300]).astype(np.int32))
  logits = setting.model.logits(
    setting.params, setting.model.hidden(setting.params, batch)
  )[0, -1]
  log_p, mass = readout.masked_log_probs(
    jnp.broadcast_to(logits, (len(allowed), len(logits))),
    jnp.asarray(allowed),
    jnp.asarray(setting.tokenizer.allowed_ids(end=end)),
  )
  assert float(jnp.exp(log_p).sum()) == pytest.approx(1, abs=1e-5)
  np.testing.assert_allclose(
    scorer_bits, -np.asarray(log_p[:3]) / np.log(2), rtol=1e-4
  )
  special = np.delete(np.asarray(jax.nn.softmax(logits)), allowed).sum()
  np.testing.assert_allclose(mass, special, atol=1e-5)


def test_special_ids_and_unused_ids_are_never_text(setting):
  allowed = setting.tokenizer.allowed_ids(end=False)
  assert not allowed[: tokenizer_lib.NUM_SPECIAL].any()
  assert not allowed[tokenizer_lib.FIRST_PIECE :].any()
  assert allowed[tokenizer_lib.FIRST_BYTE : tokenizer_lib.FIRST_PIECE].all()
  with_end = setting.tokenizer.allowed_ids(end=True)
  assert np.flatnonzero(with_end != allowed).tolist() == [tokenizer_lib.EOS]


def test_the_figure_does_not_depend_on_batch_size_or_company(setting):
  texts = ['One short.', 'Another that is longer by far. ' * 5, 'x', 'Last.']
  passages = [passage(setting.tokenizer, text) for text in texts]
  together = setting.score(passages)
  larger = setting.score(passages, batch_size=16)
  apart = setting.score(passages, one_a_row=True)
  alone = [setting.score([p]) for p in reversed(passages)]
  assert together.size == sum(len(t) for t in texts)
  for other in (larger.bits, apart.bits, sum(s.bits for s in alone)):
    assert other == pytest.approx(together.bits, rel=1e-6)
  assert sum(s.tokens for s in alone) == together.tokens == together.size


def test_context_is_given_and_not_scored(setting):
  given = setting.score([passage(setting.tokenizer, 'tail', 'Head and ')])
  whole = setting.score([passage(setting.tokenizer, 'Head and tail')])
  head = setting.score([passage(setting.tokenizer, 'Head and ')])
  assert given.bits == pytest.approx(whole.bits - head.bits, rel=1e-4)
  assert (given.size, given.tokens) == (4, 4)


def test_documents_count_their_end_and_all_their_bytes(setting, tmp_path):
  writer = store.Writer(tmp_path / 'split')
  texts = ['Plain.', '中文，两句。' * 20]
  for text in texts:
    ids = setting.tokenizer.encode(text)
    starts = np.arange(len(ids) + 1)
    document_3xL = np.stack([np.append(ids, tokenizer_lib.EOS), starts, starts])
    writer.add(store.encode([document_3xL]))
  writer.close(np.zeros(2))
  passages = list(passages_lib.documents(store.Split(tmp_path / 'split')))
  assert [p.scored[-1] for p in passages] == [tokenizer_lib.EOS] * 2
  found = setting.score(passages)
  assert found.size == sum(len(t.encode()) for t in texts)
  assert found.tokens == found.size + 2


def test_no_text_scores_nothing(setting):
  found = setting.score([])
  assert (found.bits, found.size, found.tokens) == (0, 0, 0)


CHINESE = '我们在北京学习语言模型，天气很好。' * 200
ENGLISH = 'Many words stand here, and some are long.\n' * 200


@pytest.mark.parametrize('text', [ENGLISH, CHINESE, 'é' * 3000, 'ab' * 3000])
def test_windows_are_pieces_of_the_documents(text):
  cut = windows.cut([{'name': 'a', 'text': text}, {'name': 'b', 'text': text}])
  data = text.encode()
  assert len(cut) == 2 * (len(data) // windows.WINDOW_BYTES)
  ends = {'a': 0, 'b': 0}
  for window in cut:
    whole = (window['context'] + window['scored']).encode()
    assert windows.WINDOW_BYTES - 4 < len(whole) <= windows.WINDOW_BYTES + 3
    start = window['start']
    assert data[start : start + len(whole)] == whole
    assert start >= ends[window['document']]
    ends[window['document']] = start + len(whole)
    assert abs(len(window['context'].encode()) - 512) <= 64
    if text == ENGLISH:
      assert window['scored'][0].isspace()
      assert not window['context'][-1].isspace()


def test_windows_are_spread_over_long_text():
  documents = [{'name': str(i), 'text': 'word ' * 2000} for i in range(50)]
  cut = windows.cut(documents, count=20)
  assert len(cut) == 20
  assert len({w['document'] for w in cut}) == 20
  assert windows.cut([{'name': 'a', 'text': 'short'}]) == []


def test_reading_out_in_chunks_changes_nothing(setting, monkeypatch):
  passages = [passage(setting.tokenizer, 'Some words to be scored. ' * 4)]
  whole = setting.score(passages)
  # 5 of 16 positions at a time, which does not divide them.
  monkeypatch.setattr(readout, '_LOGITS', 5 * 8 * 528)
  setting.scorers.clear()
  chunked = setting.score(passages)
  assert chunked.bits == pytest.approx(whole.bits, rel=1e-6)
  assert chunked.special_mass == pytest.approx(whole.special_mass, rel=1e-4)
