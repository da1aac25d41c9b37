"""Encoder-decoders: who reads what, ways to run them, cached decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import one_a_row
from helpers.encoder_decoders import (
  SHAPES,
  T5,
  L,
  V,
  batch_of,
  build,
  built,
  pairs,
  random_params,
)


def test_parameters_of_both_stacks_are_counted():
  model = build(num_layers=3)
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  D, F = 32, 64
  attention, mlp = 4 * D * D, 3 * D * F
  encoder = 1 * (attention + mlp + 2 * D) + D
  decoder = 3 * (2 * attention + mlp + 3 * D) + D
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  assert count == V * D + encoder + decoder


def test_branches_start_small_as_their_number_asks():
  params = jax.jit(build(num_layers=1).init)(jax.random.PRNGKey(0))['trunk']
  for side, branches in (('encoder', 2), ('decoder', 3)):
    kernel = params[side]['layers']['mlp']['down']['kernel']
    expected = (64 * branches) ** -0.5
    assert float(jnp.std(kernel)) == pytest.approx(expected, rel=0.1)


# In a row of two segments: (array, place) -> positions of the decoder that
# change. Inputs have 5 and 7 tokens behind BOS, targets 4 and 6.
CHANGES = [
  ('encoder_tokens_BxM', 0, range(0, 4)),
  ('encoder_tokens_BxM', 5, range(0, 4)),
  ('encoder_tokens_BxM', 6, range(4, 10)),
  ('encoder_tokens_BxM', 13, range(4, 10)),
  ('encoder_tokens_BxM', 15, range(0)),  # padding
  ('tokens_BxL', 2, range(2, 4)),
  ('tokens_BxL', 4, range(4, 10)),
  ('tokens_BxL', 9, range(9, 10)),
]


@pytest.mark.parametrize('shape', SHAPES)
def test_a_position_reads_its_inputs_and_what_is_before_it_alone(shape):
  model, params = built(shape)
  batch = batch_of(pairs((5, 4), (7, 6)), [])
  before = model.hidden(params, batch)
  for name, place, affected in CHANGES:
    tokens = getattr(batch, name).at[0, place].set(300)
    after = model.hidden(params, dataclasses.replace(batch, **{name: tokens}))
    changed = np.any(np.asarray(before != after), axis=-1)[0]
    # What padding makes of padding is nobody's.
    expected = [position in affected for position in range(10)]
    assert changed[:10].tolist() == expected, (name, place)


# The encoder's row is full where both are in it: padding of the decoder, four
# positions, finds none there to read.
FIRST, SECOND = pairs((5, 4), (13, 8))


@pytest.mark.parametrize('shape', SHAPES)
def test_packing_changes_nothing(shape):
  model, params = built(shape)
  packed = model.hidden(params, batch_of([FIRST, SECOND], []))
  alone = model.hidden(params, batch_of([FIRST], [SECOND]))
  np.testing.assert_allclose(packed[0, :4], alone[0, :4], atol=1e-4)
  np.testing.assert_allclose(packed[0, 4:12], alone[1, :8], atol=1e-4)


def test_packing_changes_no_loss_and_no_gradient():
  model, params = built('default')

  @jax.jit
  @jax.value_and_grad
  def gradient(params, batch):
    logits = model.logits(params, model.hidden(params, batch))
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch.targets_BxL[:, :, None], 2
    )
    return -jnp.sum(chosen[:, :, 0] * batch.weights_BxL)

  batch = batch_of([FIRST, SECOND], [])
  assert batch.encoder_segment_BxM[0].min() == 1
  assert batch.segment_BxL[0].min() == 0
  packed = gradient(params, batch)
  alone = gradient(params, batch_of([FIRST], [SECOND]))
  trees = map(jax.tree.leaves, (packed, alone))
  for found, expected in zip(*trees, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_scan_and_remat_change_no_value_and_no_gradient():
  batch = batch_of(pairs((5, 4), (7, 6)), pairs((19, 16)))
  results = []
  for way in (
    {'scan_layers': False, 'remat': 'none'},
    {'scan_layers': True, 'remat': 'full'},
  ):
    model = build(**T5, **way, dropout=0.2)
    params = random_params(model)

    def loss(params, model=model):
      key = jax.random.PRNGKey(1)
      return jnp.mean(model.hidden(params, batch, key=key, train=True) ** 2)

    results.append(jax.jit(jax.value_and_grad(loss))(params))
  for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_dropout_falls_on_both_stacks_and_not_when_scoring():
  batch = batch_of(pairs((5, 4)), [])
  model = build(**SHAPES['default'], dropout=0.3)
  plain, params = built('default')
  keys = [jax.random.PRNGKey(i) for i in (1, 1, 2)]
  first, again, other = (
    model.hidden(params, batch, key=key, train=True) for key in keys
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  np.testing.assert_array_equal(
    model.hidden(params, batch), plain.hidden(params, batch)
  )


def test_bfloat16_computes_in_bfloat16():
  batch = batch_of(pairs((5, 4)), [])
  rough = build(**T5, dtype='bfloat16')
  model, params = built('t5')
  shapes = jax.eval_shape(rough.init, jax.random.PRNGKey(0))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  found = rough.hidden(params, batch)[:, :4]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    found.astype(jnp.float32), model.hidden(params, batch)[:, :4], atol=0.2
  )


@pytest.mark.parametrize('shape', SHAPES)
def test_cached_decoding_equals_the_full_pass_at_every_position(shape):
  model, params = built(shape)
  # Inputs of two lengths; of each row so many tokens are the prompt.
  full = batch_of(pairs((19, L), seed=1), pairs((8, L), seed=2))
  prompts, done = [9, 1], 0
  expected = model.hidden(params, full)
  real = jnp.arange(L)[None, :] < jnp.array(prompts)[:, None]
  prompt = dataclasses.replace(
    full,
    tokens_BxL=full.tokens_BxL * real,
    segment_BxL=full.segment_BxL * real,
  )
  hidden, cache = model.start(params, prompt, L)
  for leaf in jax.tree.leaves(cache):
    assert leaf.shape[0] == 2
  for row, n in enumerate(prompts):
    np.testing.assert_allclose(hidden[row, :n], expected[row, :n], atol=1e-4)
  # First two tokens at once, then one by one.
  for count in (2, 1, 1, 1, 1, 1):
    new = [
      full.tokens_BxL[r, n + done : n + done + count]
      for r, n in enumerate(prompts)
    ]
    hidden, cache = model.extend(params, cache, jnp.stack(new))
    for row, n in enumerate(prompts):
      place = slice(n + done, n + done + count)
      np.testing.assert_allclose(hidden[row], expected[row, place], atol=1e-4)
    done += count


def test_a_row_that_fills_up_a_batch_is_decoded_without_nan():
  model, params = built('default')
  _, cache = model.start(params, batch_of(pairs((3, 4)), []), L)
  hidden, _ = model.extend(params, cache, jnp.full((2, 1), 300))
  assert jnp.all(jnp.isfinite(hidden))


def test_a_batch_of_one_side_is_an_error():
  model, params = built('default')
  ids = [np.array([1, 300])]
  with pytest.raises(ValueError, match='needs the encoder side'):
    model.hidden(params, one_a_row(ids, 1, L))
