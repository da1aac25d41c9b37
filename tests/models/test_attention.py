"""Masks, the causal path against its slow twin, rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import attention

B, H, G, K = 2, 4, 2, 8


def random_qkv(length, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, length, H, K), (B, length, G, K), (B, length, G, K))
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def packed(length, lengths):
  """order and segment of one row with segments of these lengths, twice."""
  order, segment = np.zeros((2, length), np.int32)
  start = 0
  for number, n in enumerate(lengths, 1):
    order[start : start + n] = np.arange(n)
    segment[start : start + n] = number
    start += n
  return [jnp.asarray(np.stack([x, x])) for x in (order, segment)]


def test_mask_of_the_docstring():
  order, segment = jnp.array([[0, 1, 2, 0, 1]]), jnp.array([[1, 1, 1, 2, 2]])
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0],
    [0, 0, 0, 1, 0],
    [0, 0, 0, 1, 1],
  ]
  found = attention.attention_mask(order, order, segment, segment)[0]
  np.testing.assert_array_equal(found, expected)


def test_reference_is_the_softmax_average_written_out():
  q, k, v = random_qkv(5)
  mask = jnp.tril(jnp.ones((B, 5, 5), bool))
  found = attention.reference(q, k, v, mask)
  for b in range(B):
    for h in range(H):
      g = h // (H // G)
      scores = np.asarray(q[b, :, h] @ k[b, :, g].T) / np.sqrt(K)
      scores[~np.tril(np.ones((5, 5), bool))] = -np.inf
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      weights /= weights.sum(-1, keepdims=True)
      np.testing.assert_allclose(
        found[b, :, h], weights @ v[b, :, g], atol=1e-5
      )


@pytest.mark.parametrize('length', [7, 64, 130, 256])
@pytest.mark.parametrize('lengths', [(1.0,), (0.3, 0.5), (0.1, 0.2, 0.3)])
def test_causal_blocks_equal_the_whole_square(length, lengths):
  q, k, v = random_qkv(length)
  order, segment = packed(length, [int(length * x) for x in lengths])

  def blocked(q, k, v):
    return attention.attend(
      q, k, v, attention='causal', order_BxL=order, segment_BxL=segment
    )

  def whole(q, k, v):
    mask = attention.attention_mask(order, order, segment, segment)
    return attention.reference(q, k, v, mask)

  # Padding differs: the whole square lets it see later padding.
  real = (segment > 0)[:, :, None, None]
  np.testing.assert_allclose(
    blocked(q, k, v) * real, whole(q, k, v) * real, atol=1e-5
  )

  def gradients(function):
    loss = lambda *qkv: jnp.sum((function(*qkv) * real) ** 2)
    return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

  for found, expected in zip(gradients(blocked), gradients(whole), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_padding_gives_finite_rows():
  q, k, v = random_qkv(8)
  order, segment = packed(8, [3])
  found = attention.attend(
    q, k, v, attention='causal', order_BxL=order, segment_BxL=segment
  )
  assert jnp.all(jnp.isfinite(found))


@pytest.mark.parametrize('length', [1, 63, 64, 100, 256, 1000])
def test_causal_blocks_cover_each_position_once(length):
  covered = [i for a, b in attention.causal_blocks(length) for i in range(a, b)]
  assert covered == list(range(length))


def test_unknown_attention_lists_the_choices():
  q, k, v = random_qkv(4)
  order, segment = packed(4, [4])
  with pytest.raises(ValueError, match="choose from 'causal'"):
    attention.attend(
      q, k, v, attention='spam', order_BxL=order, segment_BxL=segment
    )


def test_rotation_depends_on_relative_position_only():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, K))) for _ in range(2))

  def score(i, j):
    turned = [
      attention.rotate(x, jnp.array([[p]]), 100.0) for x, p in ((q, i), (k, j))
    ]
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(5, 3) == pytest.approx(score(105, 103), abs=1e-4)
  assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-4)


def test_rotation_at_position_zero_is_the_identity():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 2, K)))
  np.testing.assert_array_equal(
    attention.rotate(x, jnp.array([[0]]), 10_000.0), x
  )
