"""The repetition penalty, the filters and the draw, against slow twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import one_a_row

from lm.generation import sampling

LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
OFF = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}


def draws(count=4000, **settings):
  keys = jax.random.split(jax.random.PRNGKey(0), count)
  ids = sampling.sample(
    jnp.broadcast_to(LOGITS, (count, 4)), keys, **{**OFF, **settings}
  )
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
  # The first of the two likeliest holds 2/3.
  assert draws(count=50, top_k=2, top_p=0.6).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
  ('min_p', 'kept'), [(0.0, 4), (0.19, 4), (0.21, 3), (0.49, 2), (1.0, 1)]
)
def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest(min_p, kept):
  p = np.array([0.5, 0.25, 0.15, 0.1])
  p[kept:] = 0
  np.testing.assert_allclose(draws(min_p=min_p), p / p.sum(), atol=0.03)


@pytest.mark.parametrize('top_k', [0, 5])
@pytest.mark.parametrize('top_p', [1.0, 0.8])
@pytest.mark.parametrize('min_p', [0.0, 0.1, 0.6])
@pytest.mark.parametrize('temperature', [0.7, 2.0])
def test_all_filters_together_are_their_twins_in_turn(
  temperature, top_k, top_p, min_p
):
  logits_BxV = jax.random.normal(jax.random.PRNGKey(3), (20, 9)) * 2
  settings = {'top_k': top_k, 'top_p': top_p, 'min_p': min_p}
  kept, ids = sampling.candidates(
    logits_BxV, temperature=temperature, **settings
  )
  found = np.zeros(logits_BxV.shape)
  np.put_along_axis(
    found, np.asarray(ids), np.asarray(jax.nn.softmax(kept)), axis=1
  )
  expected = [
    slow_distribution(row, temperature, **settings)
    for row in np.asarray(logits_BxV, np.float64)
  ]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def slow_distribution(logits, temperature, top_k, top_p, min_p):
  """One row, with a loop for each filter."""
  p = np.exp(logits / temperature)
  p /= p.sum()
  ranked = sorted(range(len(p)), key=lambda i: -p[i])
  kept = ranked[: top_k or len(p)]
  nucleus, mass, whole = [], 0.0, sum(p[i] for i in kept)
  for i in kept:
    nucleus.append(i)
    mass += p[i] / whole
    if mass >= top_p:
      break
  final = [i for i in nucleus if p[i] >= min_p * p[ranked[0]]]
  result = np.zeros(len(p))
  result[final] = p[final]
  return result / result.sum()


def test_the_penalty_of_the_docstring():
  logits = jnp.array([[3.0, -1.0, 1.0]])
  seen = jnp.array([[True, True, False]])
  assert sampling.penalize(logits, seen, 2.0).tolist() == [[1.5, -2.0, 1.0]]
  assert sampling.penalize(logits, seen, 1.0) is logits


def test_the_penalty_is_that_of_transformers():
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(5, 12)).astype(np.float32)
  ids = rng.integers(12, size=(5, 7))
  theirs = transformers.RepetitionPenaltyLogitsProcessor(1.7)(
    torch.tensor(ids), torch.tensor(logits)
  )
  seen = jnp.zeros((5, 12), bool)
  for column in ids.T:
    seen = sampling.mark_seen(seen, jnp.asarray(column))
  ours = sampling.penalize(jnp.asarray(logits), seen, 1.7)
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_padding_is_not_in_the_prompt():
  batch = one_a_row([np.array([1, 4]), np.array([3, 3, 5])], 3, 6)
  found = sampling.prompt_ids(batch, 7)
  assert [np.flatnonzero(row).tolist() for row in found] == [[1, 4], [3, 5], []]
