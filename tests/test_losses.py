"""Cross-entropy: value, gradient, chunks, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import losses

B, L, D, V = 2, 12, 8, 37


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  return {
    'hidden': jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32),
    'kernel': jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
    'targets': jnp.asarray(rng.integers(0, V, (B, L)), jnp.int32),
    'weights': jnp.asarray(rng.integers(0, 2, (B, L)), jnp.float32),
  }


def test_value_is_minus_the_log_softmax_at_the_target(inputs):
  logits = inputs['hidden'] @ inputs['kernel']
  expected = -jax.nn.log_softmax(logits)[
    jnp.arange(B)[:, None], jnp.arange(L)[None], inputs['targets']
  ]
  found = losses.cross_entropy(logits, inputs['targets'])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_written_out_gradient_is_that_of_the_definition(inputs):
  logits = inputs['hidden'] @ inputs['kernel']

  def definition(logits):
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, inputs['targets'][..., None], -1)
    return -jnp.sum(picked[..., 0] * inputs['weights'])

  def ours(logits):
    nll = losses.cross_entropy(logits, inputs['targets'])
    return jnp.sum(nll * inputs['weights'])

  np.testing.assert_allclose(
    jax.grad(ours)(logits), jax.grad(definition)(logits), atol=1e-6
  )


def test_large_logits_stay_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  value, gradient = jax.value_and_grad(
    lambda x: losses.cross_entropy(x, jnp.array([1]))[0]
  )(logits)
  assert value == 2e4
  assert jnp.all(jnp.isfinite(gradient))


def test_bfloat16_logits_are_summed_in_float32(inputs):
  logits = (inputs['hidden'] @ inputs['kernel']).astype(jnp.bfloat16)
  found = losses.cross_entropy(logits, inputs['targets'])
  exact = losses.cross_entropy(logits.astype(jnp.float32), inputs['targets'])
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize('chunk', [1, 4, 6])
def test_chunked_equals_plain_in_value_and_gradients(inputs, chunk):
  def loss(hidden, kernel, weights, chunk):
    total, weight = losses.token_cross_entropy(
      lambda h: h @ kernel,
      hidden,
      inputs['targets'],
      weights,
      chunk=chunk,
    )
    return 3 * total / weight

  arguments = inputs['hidden'], inputs['kernel'], inputs['weights']
  gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
  plain, plain_gradients = gradient(*arguments, 0)
  chunked, chunked_gradients = gradient(*arguments, chunk)
  np.testing.assert_allclose(chunked, plain, rtol=1e-6)
  for found, expected in zip(chunked_gradients, plain_gradients, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_chunk_that_does_not_divide_is_refused(inputs):
  with pytest.raises(ValueError, match='5 does not divide the length 12'):
    losses.token_cross_entropy(
      lambda h: h @ inputs['kernel'],
      inputs['hidden'],
      inputs['targets'],
      inputs['weights'],
      chunk=5,
    )


def test_chunks_need_a_third_of_the_plain_memory():
  """Vocabulary 32,768, sequence 1,024, batch 8, width 384, by XLA's count."""
  shapes = (
    jax.ShapeDtypeStruct((8, 1024, 384), jnp.float32),
    jax.ShapeDtypeStruct((384, 32768), jnp.float32),
    jax.ShapeDtypeStruct((8, 1024), jnp.int32),
    jax.ShapeDtypeStruct((8, 1024), jnp.float32),
  )

  def temporary(chunk):
    def loss(hidden, kernel, targets, weights):
      return losses.token_cross_entropy(
        functools.partial(jnp.matmul, b=kernel),
        hidden,
        targets,
        weights,
        chunk=chunk,
      )[0]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(128) < temporary(0) / 3


def test_bfloat16_gradients_are_scaled_in_float32(inputs):
  """One over 4,097 is no bfloat16 number: rounded first, it is 0.02 % off."""
  hidden = inputs['hidden'].astype(jnp.bfloat16)
  ones = jnp.ones((B, L))

  def loss(hidden, scale, chunk):
    total, _ = losses.token_cross_entropy(
      lambda h: h @ inputs['kernel'].astype(jnp.bfloat16),
      hidden,
      inputs['targets'],
      ones,
      chunk=chunk,
    )
    return total * scale

  gradient = jax.grad(loss)
  unscaled = gradient(hidden, 1.0, 4).astype(jnp.float32)
  # A scale that rounds to 1 in bfloat16, but is nearer to the next number.
  scaled = gradient(hidden, 1.0039, 4)
  expected = (unscaled * 1.0039).astype(jnp.bfloat16)
  np.testing.assert_array_equal(scaled, expected)
