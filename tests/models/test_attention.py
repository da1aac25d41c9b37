"""Masks, the causal path against its slow twin, rotary positions."""

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
  B,
  G,
  H,
  K,
  check_equals_reference,
  packed,
  random_qkv,
)

from lm.models import attention


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


def attend(q, k, v, order, segment, static='causal', **how):
  return attention.attend(
    q,
    k,
    v,
    attention=static,
    order_BxL=order,
    segment_BxL=segment,
    **{'implementation': 'blocks', **how},
  )


@pytest.mark.parametrize('static', attention.ATTENTIONS)
@pytest.mark.parametrize('implementation', attention.PORTABLE)
@pytest.mark.parametrize('length', [7, 200])
@pytest.mark.parametrize('lengths', [(1.0,), (0.15, 0.2, 0.3)])
def test_portable_implementations_equal_the_reference(
  static, implementation, length, lengths
):
  lengths = [int(length * x) for x in lengths]
  order, segment = packed(length, lengths, static=static)
  check_equals_reference(
    lambda q, k, v: attend(
      q, k, v, order, segment, static, implementation=implementation
    ),
    random_qkv(length),
    order,
    segment,
  )


@pytest.mark.parametrize('static', attention.ATTENTIONS)
@pytest.mark.parametrize('implementation', attention.PORTABLE)
def test_padding_gives_finite_rows(static, implementation):
  order, segment = packed(8, [3])
  found = attend(
    *random_qkv(8), order, segment, static, implementation=implementation
  )
  assert jnp.all(jnp.isfinite(found))


@pytest.mark.parametrize('length', [1, 63, 64, 100, 256, 1000])
def test_query_blocks_cover_each_position_once(length):
  covered = [i for a, b in attention.query_blocks(length) for i in range(a, b)]
  assert covered == list(range(length))


def test_unknown_attention_lists_the_choices():
  order, segment = packed(4, [4])
  with pytest.raises(ValueError, match='choose from causal, bidirectional'):
    attend(*random_qkv(4), order, segment, 'spam')


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
