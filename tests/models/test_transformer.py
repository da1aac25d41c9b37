"""The stack: shapes, leaks, ways to run it, cached decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.decoders import BERT, GPT2, LLAMA, SHAPES, batch_of, build, run

from lm import types
from lm.models import stack


@pytest.mark.parametrize('shape', SHAPES)
def test_parameters_are_stacked_and_counted(config, shape):
  model = build(config, **SHAPES[shape])
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  N, D, F, L = 2, 32, 64, 32
  for leaf in jax.tree.leaves(params['trunk']['layers']):
    assert leaf.shape[0] == N
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  if shape == 'gpt2':
    layer = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    expected = 528 * D + L * D + N * layer + 2 * D
  else:
    layer = 2 * D * D + 2 * D * (D // 2) + 3 * D * F + 2 * D
    expected = 2 * 528 * D + N * layer + D
  assert count == expected


@pytest.mark.parametrize('shape', SHAPES)
def test_no_position_sees_a_later_one_or_another_segment(config, shape):
  model = build(config, **SHAPES[shape])
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  batch = batch_of([[10, 14]], 32)
  forward = jax.jit(
    lambda tokens: run(model, params, _with_tokens(batch, tokens))
  )
  before = forward(batch.tokens_BxL)
  for changed in (4, 12):
    tokens = batch.tokens_BxL.at[0, changed].set(300)
    after = forward(tokens)
    same = np.all(np.asarray(before == after), axis=-1)[0]
    end = 10 if changed < 10 else 24
    expected = np.ones(32, bool)
    expected[changed:end] = False
    np.testing.assert_array_equal(same, expected)


def _with_tokens(batch, tokens_BxL):
  return types.Batch(**{**vars(batch), 'tokens_BxL': tokens_BxL})


@pytest.mark.parametrize('shape', SHAPES)
def test_packing_changes_nothing(config, shape):
  model = build(config, **SHAPES[shape])
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  together = batch_of([[10, 14]], 32)
  alone = batch_of([[10], [14]], 32)
  tokens = np.zeros((2, 32), np.int32)
  tokens[0, :10] = together.tokens_BxL[0, :10]
  tokens[1, :14] = together.tokens_BxL[0, 10:24]
  alone = _with_tokens(alone, jnp.asarray(tokens))
  packed, single = run(model, params, together), run(model, params, alone)
  np.testing.assert_allclose(packed[0, :10], single[0, :10], atol=1e-5)
  np.testing.assert_allclose(packed[0, 10:24], single[1, :14], atol=1e-5)


@pytest.mark.parametrize(
  'changes',
  [
    {'scan_layers': True},
    {'remat': 'full'},
    {'remat': 'dots'},
    {'scan_layers': True, 'remat': 'full'},
  ],
)
def test_scan_and_remat_change_no_value_and_no_gradient(config, changes):
  batch = batch_of([[10, 14], [32]], 32)
  config.model.dropout = 0.2
  results = []
  for way in ({}, changes):
    model = build(config, **{'scan_layers': False, 'remat': 'none', **way})
    params = jax.jit(model.init)(jax.random.PRNGKey(0))

    def loss(params, model=model):
      key = jax.random.PRNGKey(1)
      logits = run(model, params, batch, key=key, train=True)
      return jnp.mean(logits**2)

    results.append(jax.jit(jax.value_and_grad(loss))(params))
  for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_dropout_is_drawn_from_the_key_and_off_when_scoring(config):
  model = build(config, dropout=0.3)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  batch = batch_of([[32]], 32)
  keys = [jax.random.PRNGKey(i) for i in (1, 1, 2)]
  first, again, other = (
    model.hidden(params, batch, key=key, train=True) for key in keys
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  np.testing.assert_array_equal(
    model.hidden(params, batch),
    build(config, dropout=0.0).hidden(params, batch),
  )


def test_bfloat16_computes_in_bfloat16_over_float32_parameters(config):
  model = build(config, dtype='bfloat16')
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  batch = batch_of([[32]], 32)
  rough = run(model, params, batch)
  assert rough.dtype == jnp.bfloat16
  exact = run(build(config, dtype='float32'), params, batch)
  np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.1)


RELATIVE = {'position': 'relative', 'norm_placement': 'post'}


@pytest.mark.parametrize('shape', [GPT2, LLAMA, RELATIVE])
def test_cached_decoding_equals_the_full_pass_at_every_position(config, shape):
  model = build(config, **shape)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  prompts, length = [3, 9, 1], 16
  full = batch_of([[length]] * 3, length)
  expected = run(model, params, full)
  tokens = np.zeros((3, 12), np.int32)
  segment = np.zeros((3, 12), np.int32)
  for row, n in enumerate(prompts):
    tokens[row, :n] = full.tokens_BxL[row, :n]
    segment[row, :n] = 1
  position = jnp.broadcast_to(jnp.arange(12), (3, 12))
  prompt = types.Batch(
    tokens_BxL=jnp.asarray(tokens),
    targets_BxL=jnp.asarray(tokens),
    weights_BxL=jnp.asarray(segment.astype(np.float32)),
    order_BxL=position,
    segment_BxL=jnp.asarray(segment),
    position_BxL=position,
  )
  hidden, cache = model.start(params, prompt, length)
  for leaf in jax.tree.leaves(cache):
    assert leaf.shape[0] == 3
  logits = model.logits(params, hidden)
  for row, n in enumerate(prompts):
    np.testing.assert_allclose(logits[row, :n], expected[row, :n], atol=1e-4)
  extend = jax.jit(model.extend)
  # First two tokens at once, then one by one.
  for done, count in ((0, 2), (2, 1), (3, 1), (4, 1), (5, 1)):
    new = np.stack(
      [
        full.tokens_BxL[r, n + done : n + done + count]
        for r, n in enumerate(prompts)
      ]
    )
    hidden, cache = extend(params, cache, jnp.asarray(new))
    logits = model.logits(params, hidden)
    for row, n in enumerate(prompts):
      place = slice(n + done, n + done + count)
      np.testing.assert_allclose(logits[row], expected[row, place], atol=1e-4)


@pytest.mark.parametrize('shape', [{}, RELATIVE])
def test_a_prefix_is_decoded_as_it_is_read_at_once(config, shape):
  """Its tokens see one another, those behind it what is before them."""
  model = build(config, 'prefix', **shape)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  full = batch_of([[12]], 12)
  order = jnp.maximum(jnp.arange(12) - 6, 0)[None]
  full = dataclasses.replace(full, order_BxL=order)
  expected = model.hidden(params, full)
  prompt = jax.tree.map(lambda x: x[:, :7], full)
  hidden, cache = model.start(params, prompt, 12)
  np.testing.assert_allclose(hidden, expected[:, :7], atol=1e-5)
  hidden, _ = model.extend(params, cache, full.tokens_BxL[:, 7:])
  np.testing.assert_allclose(hidden, expected[:, 7:], atol=1e-5)


def test_types_and_heads_are_there_when_asked_for(config):
  batch = batch_of([[32]], 32)
  plain = build(config, 'bidirectional')
  assert plain.init(jax.random.PRNGKey(0))['heads'] == {}
  model = build(config, 'bidirectional', **BERT)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  hidden = model.hidden(params, batch)
  # Without types all are of the first.
  first = dataclasses.replace(batch, type_BxL=jnp.zeros((1, 32), jnp.int32))
  np.testing.assert_array_equal(model.hidden(params, first), hidden)
  second = dataclasses.replace(batch, type_BxL=jnp.ones((1, 32), jnp.int32))
  assert not np.allclose(model.hidden(params, second), hidden, atol=1e-3)
  pooled = model.head('pooler', params, hidden[:, :1])
  assert pooled.shape == (1, 1, 32)
  with pytest.raises(KeyError, match='spam'):
    model.head('spam', params, hidden)


def test_gradient_of_unstack_is_one_stack():
  stacked = {'a': jnp.arange(6.0).reshape(3, 2)}

  def loss(stacked):
    first, _, last = stack.unstack(stacked, 3)
    return jnp.sum(first['a'] * 2) + jnp.sum(last['a'] ** 2)

  gradient = jax.grad(loss)(stacked)['a']
  np.testing.assert_array_equal(gradient, [[2, 2], [0, 0], [8, 10]])
