"""Sampling and decoding: seeds, batches, stops, whole characters."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from test_scoring import causal_row

from lm import config as config_lib, errors, generate, models, scoring, trained
from lm.data import tokenizer

LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))


def draws(count=4000, **settings):
  settings = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, **settings}
  keys = jax.random.split(jax.random.PRNGKey(0), count)
  ids = generate.sample(jnp.broadcast_to(LOGITS, (count, 4)), keys, **settings)
  return np.bincount(ids, minlength=4) / count


def test_plain_sampling_follows_the_distribution():
  np.testing.assert_allclose(draws(), [0.5, 0.25, 0.15, 0.1], atol=0.03)


def test_temperature_sharpens():
  p = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
  np.testing.assert_allclose(draws(temperature=0.5), p / p.sum(), atol=0.03)


def test_temperature_zero_takes_the_likeliest():
  assert draws(count=50, temperature=0.0).tolist() == [1, 0, 0, 0]


def test_top_k_keeps_k():
  np.testing.assert_allclose(draws(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
  assert draws(count=50, top_k=1).tolist() == [1, 0, 0, 0]
  np.testing.assert_allclose(
    draws(top_k=100), [0.5, 0.25, 0.15, 0.1], atol=0.03
  )


@pytest.mark.parametrize(
  ('top_p', 'kept'), [(0.0, 1), (0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4)]
)
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p, kept):
  p = np.array([0.5, 0.25, 0.15, 0.1])
  p[kept:] = 0
  np.testing.assert_allclose(draws(top_p=top_p), p / p.sum(), atol=0.03)


def test_top_p_is_of_what_top_k_left():
  # Of the two likeliest, the first holds 2/3.
  assert draws(count=50, top_k=2, top_p=0.6).tolist() == [1, 0, 0, 0]


def make_run(config):
  """An untrained model whose most probable next ids vary."""
  resolved = config_lib.resolve(config)
  model = models.make(resolved, 'causal')
  params = model.init(jax.random.PRNGKey(0))
  return trained.Trained(
    config=resolved,
    tokenizer=tokenizer.train('bytes', resolved.data.vocab_size, []),
    objective=None,
    model=model,
    mesh=None,
    params=jax.tree.map(lambda x: 3 * x, params),
    step=0,
  )


@pytest.fixture
def run(config):
  return make_run(config)


def with_settings(run, **settings):
  config = run.config.to_dict()
  config['generate'].update(settings)
  frozen = ml_collections.FrozenConfigDict(config)
  return dataclasses.replace(run, config=frozen)


PROMPTS = ['A', 'Some longer prompt', '', '中文']


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_prompt_continues_the_same_alone_and_in_any_batch(run, temperature):
  run = with_settings(run, temperature=temperature)
  generator = generate.Generator(run)
  encoded = [generator.encode(prompt) for prompt in PROMPTS]
  together = generator.batch(encoded, 0)
  alone = [generator.batch([ids], n)[0] for n, ids in enumerate(encoded)]
  assert together == alone
  small = generate.Generator(with_settings(run, batch_size=2))
  assert small(PROMPTS) == together


def test_greedy_decoding_is_the_argmax_of_the_full_pass(run):
  run = with_settings(run, temperature=0.0, max_tokens=6)
  generator = generate.Generator(run)
  ids = generator.encode('Hello').tolist()
  expected = []
  for _ in range(6):
    row = causal_row(np.array([*ids[1:], 0], np.int32))
    hidden = run.model.hidden(run.params, row)
    logits = run.model.logits(run.params, hidden)[0, -1]
    allowed = scoring.allowed_ids(run.tokenizer, end=True)
    best = int(jnp.argmax(jnp.where(allowed, logits, -jnp.inf)))
    if best == tokenizer.EOS:
      break
    expected.append(best)
    ids.append(best)
  found = generator(['Hello'])[0]
  assert found.text == run.tokenizer.decode(expected)
  assert found.tokens == len(expected)


def test_the_seed_decides(run):
  texts = [
    [c.text for c in generate.Generator(with_settings(run, seed=s))(PROMPTS)]
    for s in (0, 0, 1)
  ]
  assert texts[0] == texts[1]
  assert texts[0] != texts[2]


def test_only_text_comes_out_and_broken_bytes_are_counted(run):
  run = with_settings(run, temperature=2.0, max_tokens=24, top_p=1.0)
  completions = generate.Generator(run)(['abc'] * 8)
  assert any(c.dropped_bytes for c in completions)
  for completion in completions:
    size = len(completion.text.encode())
    assert size + completion.dropped_bytes == completion.tokens
    assert '\ufffd' not in completion.text


def test_streamed_text_is_the_completion(run):
  parts = {}
  generator = generate.Generator(with_settings(run, temperature=1.5))
  encoded = [generator.encode(prompt) for prompt in PROMPTS]
  completions = generator.batch(
    encoded, 0, on_text=lambda n, text: parts.setdefault(n, []).append(text)
  )
  for number, completion in enumerate(completions):
    assert ''.join(parts.get(number, [])) == completion.text


def test_stops_at_max_tokens_at_the_context_and_at_the_end(run):
  L = run.config.data.sequence_length
  generator = generate.Generator(with_settings(run, max_tokens=5))
  allowed = {c.stop for c in generator(['abc'] * 4)}
  assert allowed <= {'max_tokens', 'end'}
  long = generate.Generator(with_settings(run, max_tokens=10**6))
  prompt = 'a' * (L - 4)
  completions = long([prompt] * 8)
  assert any(c.stop == 'context' for c in completions)
  for completion in completions:
    # BOS and L - 4 bytes are read; the last of L positions predicts one more.
    assert completion.tokens == 4 or completion.stop == 'end'
  assert long.encode('a' * (L - 1)).shape == (L,)


def test_stops_at_the_end_of_document(config):
  """A model whose hidden state and readout always say EOS."""
  config.model.norm = 'layernorm'
  config.model.bias = True
  config.model.tie_embeddings = False
  config.generate.temperature = 0.0
  run = make_run(config)
  trunk = run.params['trunk']
  zeros = jnp.zeros_like(trunk['embeddings']['readout_kernel'])
  readout = zeros.at[:, tokenizer.EOS].set(1.0)
  trunk['embeddings']['readout_kernel'] = readout
  trunk['final_norm']['bias'] += 10.0
  found = generate.Generator(run)(['x'])[0]
  assert (found.text, found.tokens, found.stop) == ('', 0, 'end')


def test_a_prompt_longer_than_the_context_is_refused(run):
  L = run.config.data.sequence_length
  with pytest.raises(errors.UserError, match=f'longer than the context of {L}'):
    generate.Generator(run)(['a' * L])


def test_decoding_compiles_once_for_prompts_of_any_length(run):
  generator = generate.Generator(run)
  for prompt in PROMPTS:
    generator([prompt])
  assert generator._start._cache_size() == 1
  assert generator._extend._cache_size() == 1
