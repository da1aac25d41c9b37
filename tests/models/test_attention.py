"""Masks, the causal path against its slow twin, rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import docstrings
from helpers.attention_cases import (
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
  lines = docstrings.lines(attention.attention_mask)[-5:]
  order, segment = (
    jnp.array([[int(x) for x in line[1:6]]]) for line in lines[:2]
  )
  expected = [[x == '1' for x in line[-5:]] for line in lines]
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


@pytest.mark.parametrize('implementation', ['blocks', 'xla'])
def test_a_bias_is_added_to_the_scores(implementation):
  """The row is cut into blocks; the bias has a gradient, too."""
  length = 200
  order, segment = packed(length, [length])
  bias = jnp.asarray(
    np.random.default_rng(1).normal(size=(1, H, length, length)), jnp.float32
  )

  def loss(bias, implementation):
    out = attend(
      *random_qkv(length),
      order,
      segment,
      implementation=implementation,
      bias_BxHxLxL=bias,
    )
    return jnp.sum(out**2), out

  results = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  gradient, out = results(bias, implementation)
  expected_gradient, expected = results(bias, 'reference')
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
  plain = attend(*random_qkv(length), order, segment)
  assert not np.allclose(out, plain, atol=1e-2)


def test_cross_mask_of_the_docstring():
  lines = docstrings.lines(attention.cross_mask)[-3:]
  queries, keys = (
    jnp.array([[int(x) for x in line[1:4]]]) for line in lines[:2]
  )
  expected = [[x == '1' for x in line[-3:]] for line in lines]
  assert attention.cross_mask(queries, keys)[0].tolist() == expected


@pytest.mark.parametrize('implementation', attention.IMPLEMENTATIONS)
def test_queries_see_the_keys_of_their_segment(implementation):
  """Also where a kernel was chosen, which takes one length alone."""
  q, _, _ = random_qkv(200)
  _, k, v = random_qkv(30, seed=1)
  _, queries = packed(200, [90, 100])
  _, keys = packed(30, [20, 10])
  found = attention.cross_attend(
    q,
    k,
    v,
    query_segment_BxL=queries,
    key_segment_BxM=keys,
    implementation=implementation,
  )
  # Row 0 by hand; padding is anything finite.
  for place, read in (
    (slice(90), slice(20)),
    (slice(90, 190), slice(20, 30)),
  ):
    row = q[:1, place], k[:1, read], v[:1, read]
    all_see = jnp.ones((1, row[0].shape[1], row[1].shape[1]), bool)
    expected = attention.reference(*row, all_see)
    np.testing.assert_allclose(found[:1, place], expected, atol=1e-5)
  assert jnp.all(jnp.isfinite(found))


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
