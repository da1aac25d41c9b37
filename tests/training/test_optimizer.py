"""Schedules, rules over parameters, each optimizer by its paper."""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from lm import models, objectives
from lm.config import resolve as config_lib
from lm.runtime import parameter_rules
from lm.training import optimizer

RULES = models.FAMILIES['transformer'].rules


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


@pytest.mark.parametrize('warmup', [0, 1, 40])
def test_inverse_sqrt_is_the_published_schedule(config, warmup):
  """Vaswani et al. 2017, equation 3, scaled to the peak; it never ends."""
  rate = schedule(
    config,
    schedule='inverse_sqrt',
    warmup_steps=warmup,
    schedule_steps=50,
    final_fraction=0.5,
    learning_rate=2.0,
  )
  w = max(1, warmup)
  for n in (1, 2, 39, 40, 41, 50, 51, 10_000):
    published = min(n**-0.5, n * w**-1.5) / w**-0.5
    assert float(rate(n - 1)) == pytest.approx(2.0 * published, rel=1e-5)


@pytest.mark.parametrize('warmup', [0, 10])
def test_wsd_is_stable_and_then_falls(config, warmup):
  """Hu et al. 2024, section 4.2, with the decay of Hägele et al. 2024."""
  rate = schedule(
    config,
    schedule='wsd',
    warmup_steps=warmup,
    schedule_steps=100,
    decay_fraction=0.25,
    final_fraction=0.1,
    learning_rate=2.0,
  )
  rates = [float(rate(i)) for i in range(101)]
  assert rates[warmup:76] == [2.0] * (76 - warmup)
  for i in (76, 80, 99):
    expected = 2.0 * (0.1 + 0.9 * (1 - math.sqrt((i - 75) / 25)))
    assert rates[i] == pytest.approx(expected, rel=1e-5)
  assert rates[100] == pytest.approx(0.2)
  assert float(rate(10_000)) == pytest.approx(0.2)


def test_the_decay_of_wsd_is_a_step_at_least(config):
  rate = schedule(
    config,
    schedule='wsd',
    warmup_steps=0,
    schedule_steps=10,
    decay_fraction=0.0,
    learning_rate=1.0,
  )
  assert float(rate(9)) == 1.0
  assert float(rate(10)) == pytest.approx(0.1)


@pytest.mark.parametrize(
  'model',
  [
    {
      'norm': 'layernorm',
      'bias': True,
      'position': 'learned',
      'token_types': 2,
      'embedding_norm': True,
      'readout': 'transform',
      'heads': ('pooler',),
      'tie_embeddings': False,
    },
    {'position': 'relative', 'architecture': 'encoder_decoder'},
  ],
)
def test_decay_is_for_matrices_alone(config, model):
  config.objective.name = 'prefix'
  config.model.update(model)
  config = config_lib.resolve(config)
  params = jax.eval_shape(
    models.make(config, objectives.make(config)).init, jax.random.PRNGKey(0)
  )
  mask = parameter_rules.tree_match(RULES.decay, params)
  decayed = {
    parameter_rules.path_name(path): value
    for path, value in jax.tree_util.tree_leaves_with_path(mask)
  }
  for name, value in decayed.items():
    matrix = name.endswith(('kernel', 'token/embedding'))
    assert value == matrix, name


def test_a_path_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match=r'no rule matches .*trunk/new'):
    parameter_rules.tree_match(RULES.decay, {'trunk': {'new': jnp.zeros(1)}})


def test_the_first_rule_that_matches_wins():
  assert parameter_rules.match([('a', 1), ('.', 2)], 'x/a') == 1
  assert parameter_rules.match([('a', 1), ('.', 2)], 'x/b') == 2


def kernel_steps(config, gradients, **changes):
  """A kernel from (1, -2) on, after a step a gradient."""
  for name, value in changes.items():
    config.optimizer[name] = value
  transform = optimizer.make(config_lib.resolve(config))
  params = {'a': {'kernel': jnp.array([1.0, -2.0])}}
  state = transform.init(params)
  for gradient in gradients:
    gradient = {'a': {'kernel': jnp.asarray(gradient, jnp.float32)}}
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params['a']['kernel']


def test_clipping_bounds_the_global_norm(config):
  settings = {
    'name': 'sgd',
    'momentum': 0.0,
    'weight_decay': 0.0,
    'schedule': 'constant',
    'warmup_steps': 0,
    'learning_rate': 1.0,
  }
  clipped = kernel_steps(config, [[30.0, 40.0]], clip_norm=5.0, **settings)
  np.testing.assert_allclose(clipped, [1 - 3, -2 - 4], rtol=1e-6)
  free = kernel_steps(config, [[30.0, 40.0]], clip_norm=0.0, **settings)
  np.testing.assert_allclose(free, [1 - 30, -2 - 40], rtol=1e-6)


RATE = 0.1


def _sgd_by_hand(x, g, m, v, t, *, momentum, weight_decay):
  m = momentum * m + g + weight_decay * x
  return x - RATE * m, m, v


def _rmsprop_by_hand(x, g, m, v, t, *, b2, epsilon, momentum, weight_decay):
  g = g + weight_decay * x
  v = b2 * v + (1 - b2) * g**2
  m = momentum * m + g / (np.sqrt(v) + epsilon)
  return x - RATE * m, m, v


def _adam_by_hand(x, g, m, v, t, *, b1, b2, epsilon, weight_decay):
  g = g + weight_decay * x
  m = b1 * m + (1 - b1) * g
  v = b2 * v + (1 - b2) * g**2
  step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
  return x - RATE * step, m, v


def _adamw_by_hand(x, g, m, v, t, *, weight_decay, **settings):
  new, m, v = _adam_by_hand(x, g, m, v, t, weight_decay=0.0, **settings)
  return new - RATE * weight_decay * x, m, v


def _lion_by_hand(x, g, m, v, t, *, b1, b2, weight_decay):
  step = np.sign(b1 * m + (1 - b1) * g)
  m = b2 * m + (1 - b2) * g
  return x - RATE * (step + weight_decay * x), m, v


BY_HAND = {
  'sgd': _sgd_by_hand,
  'rmsprop': _rmsprop_by_hand,
  'adam': _adam_by_hand,
  'adamw': _adamw_by_hand,
  'lion': _lion_by_hand,
}


@pytest.mark.parametrize('name', BY_HAND)
def test_elementwise_optimizers_are_the_published_ones(config, name):
  values = {
    'b1': 0.5,
    'b2': 0.8,
    'epsilon': 0.05,
    'momentum': 0.7,
    'weight_decay': 0.2,
  }
  settings = {field: values[field] for field in optimizer.DEFAULTS[name]}
  # The second turns the sign of lion's step under these b1 and b2 alone.
  gradients = [np.array([0.3, -0.1]) * scale for scale in (1.0, -0.3, 2.0)]
  found = kernel_steps(
    config,
    gradients,
    name=name,
    learning_rate=RATE,
    schedule='constant',
    warmup_steps=0,
    clip_norm=0.0,
    **settings,
  )
  x, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
  for t, gradient in enumerate(gradients, 1):
    x, m, v = BY_HAND[name](x, gradient, m, v, t, **settings)
  np.testing.assert_allclose(found, x, rtol=1e-5)


def _full_config(config, name):
  """Every kind of parameter: biases, positions, a readout of its own."""
  config.optimizer.name = name
  config.optimizer.schedule = 'constant'
  config.optimizer.warmup_steps = 0
  config.optimizer.clip_norm = 0.0
  config.optimizer.learning_rate = RATE
  config.optimizer.weight_decay = 0.2
  config.model.norm = 'layernorm'
  config.model.bias = True
  config.model.position = 'learned'
  config.model.tie_embeddings = False
  # No square attention matrix: sides must not be exchanged unseen.
  config.model.num_kv_heads = 2
  return config_lib.resolve(config)


def _random(shapes, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes
  )


def _steps(config, count=2):
  """Parameter -> (at first, its gradients, after `count` steps)."""
  model = models.make(config, objectives.make(config))
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  transform = optimizer.make(config)
  first = params = _random(shapes, 0)
  gradients = [_random(shapes, 1 + i) for i in range(count)]
  state = transform.init(params)
  update = jax.jit(transform.update)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  named = [
    parameter_rules.path_name(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  columns = [jax.tree.leaves(tree) for tree in (first, *gradients, params)]
  return {
    name: (before, given, np.asarray(after))
    for name, before, *given, after in zip(named, *columns, strict=True)
  }


def _layers(name, x):
  """The matrices and vectors that a parameter holds, one by one."""
  for layer in x if '/layers/' in name else [x]:
    if name.endswith('bias') or 'norm/' in name:
      yield layer.reshape(-1)
    elif name.endswith('out/kernel'):
      yield layer.reshape(-1, layer.shape[-1])
    else:
      yield layer.reshape(layer.shape[0], -1)


def _orthogonal(x):
  """Five steps of Newton and Schulz on a matrix (Jordan et al. 2024)."""
  x = x / np.linalg.norm(x)
  tall = x.shape[0] > x.shape[1]
  x = x.T if tall else x
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x.T if tall else x


def _muon_by_hand(x, gradients, *, beta, decay):
  """Nesterov momentum with the bias divided out, as optax has it."""
  m = 0.0
  for t, gradient in enumerate(gradients, 1):
    m = beta * m + (1 - beta) * gradient
    ahead = beta * m / (1 - beta ** (t + 1))
    ahead = ahead + (1 - beta) * gradient / (1 - beta**t)
    step = 0.2 * np.sqrt(max(x.shape)) * _orthogonal(ahead)
    x = x - RATE * (step + decay * x)
  return x


def test_muon_makes_each_matrix_of_each_layer_orthogonal(config):
  config = _full_config(config, 'muon')
  found = _steps(config)
  config = ml_collections.ConfigDict(config)
  config.optimizer.name = 'adamw'
  adamw = _steps(config)
  for name, (before, gradients, after) in found.items():
    if not name.endswith('/kernel'):
      assert not name.endswith('kernel') or 'readout' in name
      np.testing.assert_array_equal(after, adamw[name][2], name)
      continue
    parts = zip(
      *(_layers(name, x) for x in (before, *gradients, after)), strict=True
    )
    count = 0
    for x, *given, y in parts:
      expected = _muon_by_hand(x, given, beta=0.95, decay=0.2)
      np.testing.assert_allclose(y, expected, atol=2e-4, err_msg=name)
      count += 1
    assert count == config.model.num_layers


def _adafactor_by_hand(x, gradients, *, decay, epsilon=1e-30):
  """Shazeer and Stern 2018, algorithms 4 and 5, with a decay of adamw's."""
  rows = columns = 0.0
  for t, gradient in enumerate(gradients, 1):
    b2 = 1 - t**-0.8
    square = gradient**2 + epsilon
    rows = b2 * rows + (1 - b2) * square.mean(-1, keepdims=True)
    if x.ndim == 2:
      columns = b2 * columns + (1 - b2) * square.mean(0, keepdims=True)
      mean = rows * columns / rows.mean()
    else:
      columns = b2 * columns + (1 - b2) * square
      mean = columns
    step = gradient / np.sqrt(mean)
    step = step / max(1.0, np.sqrt(np.mean(step**2)))
    size = max(1e-3, np.sqrt(np.mean(x**2)))
    x = x - RATE * (size * step + decay * x)
  return x


def test_adafactor_is_the_published_update_of_each_matrix(config):
  config = _full_config(config, 'adafactor')
  for name, (before, gradients, after) in _steps(config).items():
    decay = 0.2 if parameter_rules.match(RULES.decay, name) else 0.0
    for x, *given, y in zip(
      *(_layers(name, x) for x in (before, *gradients, after)), strict=True
    ):
      expected = _adafactor_by_hand(x, given, decay=decay)
      np.testing.assert_allclose(y, expected, atol=1e-5, err_msg=name)


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix(config):
  config = _full_config(config, 'adafactor')
  model = models.make(config, objectives.make(config))
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  slots = jax.eval_shape(optimizer.make(config).init, params)
  matrices = sum(
    x.size
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if parameter_rules.match(RULES.decay, parameter_rules.path_name(path))
  )
  assert sum(x.size for x in jax.tree.leaves(slots)) < matrices / 5
