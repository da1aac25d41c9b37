"""Queries, packed rows and a comparison, for all tests of attention."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models import attention

B, H, G, K = 2, 4, 2, 8


def random_qkv(length, *, shape=(B, H, G, K), seed=0):
  rng = np.random.default_rng(seed)
  batch, heads, groups, size = shape
  return [
    jnp.asarray(rng.normal(size=(batch, length, n, size)), jnp.float32)
    for n in (heads, groups, groups)
  ]


def packed(length, lengths, *, static='causal', batch=B):
  """order and segment; segments of these lengths, reversed in odd rows.

  Of a prefix, each begins with one: a third of it, and of the first nothing.
  """
  order, segment = np.zeros((2, batch, length), np.int32)
  for row in range(batch):
    start = 0
    for number, n in enumerate(lengths[:: (-1) ** row], 1):
      prefix = n // 3 * (number > 1) if static == 'prefix' else 0
      order[row, start : start + n] = np.maximum(np.arange(n) - prefix, 0)
      segment[row, start : start + n] = number
      start += n
  return jnp.asarray(order * (static != 'bidirectional')), jnp.asarray(segment)


def check_equals_reference(attend, qkv, order, segment):
  """Values and gradients of `attend(q, k, v)`, where rows are not padding.

  Padding differs: who sees which of it is left to the implementation.
  """
  real = (segment > 0)[:, :, None, None]

  def reference(q, k, v):
    mask = attention.attention_mask(order, order, segment, segment)
    return attention.reference(q, k, v, mask)

  def results(function):
    def loss(*qkv):
      out = function(*qkv) * real
      return jnp.sum(out**2), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)

  gradients, out = results(attend)
  expected_gradients, expected = results(reference)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  for found, gradient in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(found, gradient, atol=1e-4)
