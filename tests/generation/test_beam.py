"""Beam search against enumeration, greedy decoding and the full pass."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import causal_row, one_a_row
from helpers.generators import PROMPTS, make_run, with_settings

from lm import types
from lm.data import tokenizer
from lm.generation import beam, left_to_right, sampling

V, T = 4, 4
ALLOWED = jnp.ones(V, bool)


def random_table(seed):
  """Another random distribution after every prefix."""
  codes = sum(V**n for n in range(T + 2))
  return 2 * jax.random.normal(jax.random.PRNGKey(seed), (codes, V))


def table_model():
  """Looks its logits up in `params`, by a prefix that is kept in the cache."""

  def start(table, batch, length):
    del length
    B, L = batch.tokens_BxL.shape
    count_B = jnp.sum(batch.segment_BxL != 0, axis=1)
    # Prompts are of one id, which is the first digit.
    code_B = 1 + batch.tokens_BxL[:, 0]
    hidden_BxLxV = jnp.broadcast_to(table[code_B][:, None], (B, L, V))
    return hidden_BxLxV, {'length': count_B, 'code': code_B}

  def extend(table, cache, tokens_Bx1):
    code_B = 1 + V * cache['code'] + tokens_Bx1[:, 0]
    cache = {'length': cache['length'] + 1, 'code': code_B}
    return table[code_B][:, None], cache

  return types.Model(
    init=None,
    hidden=None,
    logits=lambda table, hidden: hidden,
    token_log_probs=None,
    start=start,
    extend=extend,
  )


@functools.cache
def compiled(beams, alpha, repetition_penalty):
  found = beam.make_search(
    table_model(),
    ALLOWED,
    context=T + 1,
    beams=beams,
    max_tokens=T,
    alpha=alpha,
    repetition_penalty=repetition_penalty,
  )
  return jax.jit(found)


def search(table, prompts, limits, *, beams=1, alpha=0.0, penalty=1.0):
  batch = one_a_row([np.array([p]) for p in prompts], len(prompts), 1)
  found = compiled(beams, alpha, penalty)(table, batch, jnp.array(limits))
  return [
    (ids[:n].tolist(), pytest.approx(float(score), abs=1e-5))
    for ids, n, score in zip(
      np.asarray(found.ids_BxT),
      np.asarray(found.length_B),
      found.score_B,
      strict=True,
    )
  ]


def enumerate_all(table, prompt, limit, alpha, penalty):
  """Every continuation that can end, by its score."""
  scores = {}
  for count in range(1, limit + 1):
    for ids in itertools.product(range(V), repeat=count):
      if tokenizer.EOS in ids[:-1]:
        continue
      if count < limit and ids[-1] != tokenizer.EOS:
        continue
      code, log_p, seen = 1 + prompt, 0.0, {prompt}
      for i in ids:
        logits = table[code].copy()
        for j in seen:
          logits[j] *= 1 / penalty if logits[j] > 0 else penalty
        log_p += logits[i] - np.log(np.exp(logits).sum())
        code, seen = 1 + V * code + i, seen | {i}
      scores[ids] = log_p / ((5 + count) / 6) ** alpha
  return scores


PROMPT_IDS, LIMITS = [0, 1, 3, 1, 0, 3], [T, T, T, T - 1, 2, 1]


@pytest.mark.parametrize(('alpha', 'penalty'), [(0.0, 1.0), (2.0, 1.5)])
def test_wide_search_is_enumeration(alpha, penalty):
  lengths = set()
  for seed in range(4):
    table = random_table(seed)
    found = search(
      table,
      PROMPT_IDS,
      LIMITS,
      beams=V ** (T - 1),
      alpha=alpha,
      penalty=penalty,
    )
    slow = np.asarray(table, np.float64)
    for (ids, score), prompt, limit in zip(
      found, PROMPT_IDS, LIMITS, strict=True
    ):
      scores = enumerate_all(slow, prompt, limit, alpha, penalty)
      best = max(scores, key=scores.get)
      assert tuple(ids) == best
      assert scores[best] == score
      lengths.add(len(ids))
  assert len(lengths) > 1


def test_one_beam_is_greedy_and_more_beams_find_likelier_text():
  better = ended = 0
  for seed in range(6):
    table = random_table(seed)
    slow = np.asarray(table, np.float64)
    one = search(table, PROMPT_IDS, LIMITS)
    three = search(table, PROMPT_IDS, LIMITS, beams=3)
    for found, wider, prompt, limit in zip(
      one, three, PROMPT_IDS, LIMITS, strict=True
    ):
      code, ids, log_p = 1 + prompt, [], 0.0
      while len(ids) < limit and tokenizer.EOS not in ids:
        ids.append(int(np.argmax(slow[code])))
        log_p += slow[code].max() - np.log(np.exp(slow[code]).sum())
        code = 1 + V * code + ids[-1]
      assert found == (ids, log_p)
      ended += ids[-1] == tokenizer.EOS
      better += wider[1].expected > log_p + 0.1
  assert ended > 0
  assert better > 0


def test_a_longer_text_may_overtake_one_that_has_ended():
  """Half ends at once; nearly all of the rest goes one way, to the limit."""
  one_way = jnp.log(jnp.array([0.01, 0.01, 0.01, 0.97]))
  first = jnp.log(jnp.array([0.02, 0.02, 0.5, 0.46]))
  table = jnp.broadcast_to(one_way, random_table(0).shape).at[1].set(first)
  for alpha, expected in ((0.0, [tokenizer.EOS]), (2.0, [3] * T)):
    [(ids, _)] = search(table, [0], [T], beams=2, alpha=alpha)
    assert ids == expected


def test_a_row_does_not_depend_on_the_rows_beside_it():
  table = random_table(0)
  together = search(table, PROMPT_IDS, LIMITS, beams=2, alpha=0.6)
  for prompt, limit, (ids, score) in zip(
    PROMPT_IDS, LIMITS, together, strict=True
  ):
    [alone] = search(table, [prompt], [limit], beams=2, alpha=0.6)
    assert (ids, score.expected) == alone


def test_the_length_penalty_of_the_docstring():
  lengths = jnp.array([1, 7])
  assert beam.length_penalty(lengths, 0.0).tolist() == [1, 1]
  assert beam.length_penalty(lengths, 1.0).tolist() == [1, 2]


@pytest.fixture
def run(config):
  return with_settings(make_run(config), temperature=0.0, max_tokens=6)


def test_decoding_beams_in_any_batch_gives_the_same_text(run):
  wide = with_settings(run, beams=3, batch_size=4)
  generator = left_to_right.continuation_generator(wide)
  together = generator(PROMPTS)
  assert together == [generator([prompt])[0] for prompt in PROMPTS]
  assert generator._search._cache_size() == 2  # a lone prompt, and batches
  greedy = left_to_right.continuation_generator(run)(PROMPTS)
  assert [c.text for c in together] != [c.text for c in greedy]


def test_the_score_is_that_of_the_full_pass(run):
  prompt = np.array([tokenizer.BOS, *run.tokenizer.encode('Hello')], np.int32)
  allowed = jnp.asarray(run.tokenizer.allowed_ids(end=True))
  three = beam.make_search(
    run.model,
    allowed,
    context=32,
    beams=3,
    max_tokens=6,
    alpha=0.6,
    repetition_penalty=1.3,
  )
  batch = one_a_row([prompt], 1, 32)
  found = jax.jit(three)(run.params, batch, jnp.array([6]))
  n = int(found.length_B[0])
  ids = np.asarray(found.ids_BxT)[0, :n]
  row = causal_row(np.concatenate([prompt[1:], ids]))
  logits = run.model.logits(run.params, run.model.hidden(run.params, row))[0]
  log_p = 0.0
  for i in range(n):
    before = np.concatenate([prompt, ids[:i]])
    seen = jnp.zeros(len(allowed), bool).at[before].set(True)
    here = sampling.penalize(logits[len(before) - 1], seen, 1.3)
    here = jax.nn.log_softmax(jnp.where(allowed, here, -jnp.inf))
    log_p += float(here[ids[i]])
  score = log_p / ((5 + n) / 6) ** 0.6
  assert float(found.score_B[0]) == pytest.approx(score, rel=1e-4)


def test_one_beam_is_the_greedy_decoding_of_the_generator(run):
  generator = left_to_right.continuation_generator(run)
  one = beam.make_search(
    run.model,
    jnp.asarray(run.tokenizer.allowed_ids(end=True)),
    context=32,
    beams=1,
    max_tokens=6,
    alpha=0.6,
    repetition_penalty=1.0,
  )
  one = jax.jit(one)
  for prompt in PROMPTS[1:3]:
    batch = one_a_row([generator.encode(prompt).tokens_L], 1, 32)
    ids = np.asarray(one(run.params, batch, jnp.array([6])).ids_BxT)[0]
    [completion] = generator([prompt])
    assert run.tokenizer.decode(ids) == completion.text


def test_beams_stop_at_the_context(run):
  wide = with_settings(run, beams=2, max_tokens=10**6)
  [completion] = left_to_right.continuation_generator(wide)(['a' * 28])
  assert completion.tokens == 4 or completion.stop == 'end'
