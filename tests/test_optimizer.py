"""Schedules, decay rules, clipping."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config as config_lib, models, optimizer, rules


def schedule(config, **changes):
  for name, value in changes.items():
    config.optimizer[name] = value
  return optimizer.make_schedule(config_lib.resolve(config))


def test_warmup_is_linear_and_moves_from_the_first_step(config):
  rate = schedule(config, warmup_steps=4, learning_rate=1.0)
  np.testing.assert_allclose([rate(i) for i in range(4)], [0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize('warmup', [0, 1, 10])
@pytest.mark.parametrize('name', ['cosine', 'linear'])
def test_schedules_fall_to_the_final_rate_and_stay(config, name, warmup):
  rate = schedule(
    config,
    schedule=name,
    warmup_steps=warmup,
    schedule_steps=50,
    final_fraction=0.2,
    learning_rate=2.0,
  )
  rates = [float(rate(i)) for i in range(warmup, 51)]
  assert rates[0] == pytest.approx(2.0)
  assert all(a > b for a, b in itertools.pairwise(rates))
  assert rates[-1] == pytest.approx(0.4)
  assert float(rate(500)) == pytest.approx(0.4)


def test_constant_stays_at_the_peak(config):
  rate = schedule(config, schedule='constant', learning_rate=0.5)
  assert float(rate(2)) == float(rate(10**6)) == 0.5


def test_cosine_is_half_way_at_half_time(config):
  rate = schedule(
    config,
    warmup_steps=0,
    schedule_steps=100,
    final_fraction=0.0,
    learning_rate=1.0,
  )
  assert float(rate(50)) == pytest.approx(0.5)


@pytest.mark.parametrize('shape', ['layernorm', 'rmsnorm'])
def test_decay_is_for_matrices_alone(config, shape):
  config.model.norm = shape
  config.model.bias = shape == 'layernorm'
  config.model.position = 'learned'
  config.model.tie_embeddings = False
  config = config_lib.resolve(config)
  params = jax.eval_shape(
    models.make(config, 'causal').init, jax.random.PRNGKey(0)
  )
  mask = rules.tree_match(optimizer.DECAY, params)
  decayed = {
    rules.path_name(path): value
    for path, value in jax.tree_util.tree_leaves_with_path(mask)
  }
  for name, value in decayed.items():
    matrix = name.endswith(('kernel', 'token/embedding'))
    assert value == matrix, name


def test_a_path_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match=r'no rule matches .*trunk/new'):
    rules.tree_match(optimizer.DECAY, {'trunk': {'new': jnp.zeros(1)}})


def test_the_first_rule_that_matches_wins():
  assert rules.match([('a', 1), ('.', 2)], 'x/a') == 1
  assert rules.match([('a', 1), ('.', 2)], 'x/b') == 2


def quadratic_steps(config, gradient, count=3, **changes):
  for name, value in changes.items():
    config.optimizer[name] = value
  transform = optimizer.make(config_lib.resolve(config))
  params = {'a': {'kernel': jnp.array([1.0, -2.0])}}
  state = transform.init(params)
  for _ in range(count):
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params['a']['kernel']


def test_clipping_bounds_the_global_norm(config):
  gradient = {'a': {'kernel': jnp.array([30.0, 40.0])}}
  settings = {
    'name': 'sgd',
    'momentum': 0.0,
    'weight_decay': 0.0,
    'schedule': 'constant',
    'warmup_steps': 0,
    'learning_rate': 1.0,
    'count': 1,
  }
  clipped = quadratic_steps(config, gradient, clip_norm=5.0, **settings)
  np.testing.assert_allclose(clipped, [1 - 3, -2 - 4], rtol=1e-6)
  free = quadratic_steps(config, gradient, clip_norm=0.0, **settings)
  np.testing.assert_allclose(free, [1 - 30, -2 - 40], rtol=1e-6)


def test_adamw_is_the_published_update(config):
  """Loshchilov and Hutter 2019, algorithm 2, by hand."""
  rate, decay, b1, b2, epsilon = 0.1, 0.2, 0.9, 0.95, 1e-8
  gradient = np.array([0.3, -0.1])
  found = quadratic_steps(
    config,
    {'a': {'kernel': jnp.asarray(gradient, jnp.float32)}},
    name='adamw',
    learning_rate=rate,
    weight_decay=decay,
    b1=b1,
    b2=b2,
    epsilon=epsilon,
    schedule='constant',
    warmup_steps=0,
    clip_norm=0.0,
  )
  x, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
  for t in (1, 2, 3):
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * gradient**2
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
    x = x - rate * (step + decay * x)
  np.testing.assert_allclose(found, x, rtol=1e-5)
