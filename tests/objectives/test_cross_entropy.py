"""Cross-entropy and its extras: value, gradient, chunks, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import types
from lm.models import dot_general
from lm.objectives import cross_entropy

B, L, D, V = 2, 12, 8, 37
EXTRAS = [{}, {'smoothing': 0.1}, {'z': 0.01}, {'smoothing': 0.1, 'z': 0.01}]


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
  found = cross_entropy.cross_entropy(logits, inputs['targets'])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_written_out_gradient_is_that_of_the_definition(inputs):
  logits = inputs['hidden'] @ inputs['kernel']

  def definition(logits):
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, inputs['targets'][..., None], -1)
    return -jnp.sum(picked[..., 0] * inputs['weights'])

  def ours(logits):
    nll = cross_entropy.cross_entropy(logits, inputs['targets'])
    return jnp.sum(nll * inputs['weights'])

  np.testing.assert_allclose(
    jax.grad(ours)(logits), jax.grad(definition)(logits), atol=1e-6
  )


def test_large_logits_stay_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  value, gradient = jax.value_and_grad(
    lambda x: cross_entropy.cross_entropy(x, jnp.array([1]))[0]
  )(logits)
  assert value == 2e4
  assert jnp.all(jnp.isfinite(gradient))


def test_bfloat16_logits_are_summed_in_float32(inputs):
  logits = (inputs['hidden'] @ inputs['kernel']).astype(jnp.bfloat16)
  found = cross_entropy.cross_entropy(logits, inputs['targets'])
  exact = cross_entropy.cross_entropy(
    logits.astype(jnp.float32), inputs['targets']
  )
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, exact)


def trained(terms, extras) -> jax.Array:
  """The one division, as the train step does it."""
  reported = ['main', *extras] if extras else []
  name = types.TRAINED if extras else 'main'
  assert list(terms) == list(dict.fromkeys([name, *reported]))
  total, weight = terms[name]
  return total / weight


def token_loss(inputs, extras, chunk):
  """(hidden, kernel, weights) -> the trained loss, and the terms."""

  def loss(hidden, kernel, weights):
    terms = cross_entropy.token_cross_entropy(
      lambda h: h @ kernel,
      hidden,
      inputs['targets'],
      weights,
      name='main',
      chunk=chunk,
      factors=extras,
    )
    return 3 * trained(terms, extras), terms

  return loss


@pytest.mark.parametrize('extras', EXTRAS)
@pytest.mark.parametrize('chunk', [0, 1, 4, 5, 6])
def test_gradients_are_those_of_the_definition(inputs, extras, chunk):
  """Szegedy et al. 2016, equation in section 7; PaLM, section 5."""
  share, factor = extras.get('smoothing', 0.0), extras.get('z', 0.0)

  def definition(hidden, kernel, weights):
    logits = hidden @ kernel
    log_p = jax.nn.log_softmax(logits)
    labels = (1 - share) * jax.nn.one_hot(inputs['targets'], V) + share / V
    log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    values = -jnp.sum(labels * log_p, axis=-1) + factor * log_z**2
    return 3 * jnp.sum(values * weights) / jnp.sum(weights)

  arguments = inputs['hidden'], inputs['kernel'], inputs['weights']
  expected, wanted = jax.value_and_grad(definition, (0, 1, 2))(*arguments)
  loss = token_loss(inputs, extras, chunk)
  (found, _), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
    *arguments
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  for x, y in zip(gradients, wanted, strict=True):
    np.testing.assert_allclose(x, y, atol=2e-6)


@pytest.mark.parametrize('chunk', [0, 4])
def test_extras_leave_the_cross_entropy_what_it_is(inputs, chunk):
  arguments = inputs['hidden'], inputs['kernel'], inputs['weights']
  alone = token_loss(inputs, {}, 0)(*arguments)[1]['main']
  extras = {'smoothing': 0.3, 'z': 0.5}
  terms = token_loss(inputs, extras, chunk)(*arguments)[1]
  np.testing.assert_allclose(terms['main'], alone, rtol=1e-5)
  assert terms['main'][1] == terms['smoothing'][1] == terms['z'][1]
  logits = inputs['hidden'] @ inputs['kernel']
  log_z = jax.nn.logsumexp(logits, axis=-1)
  expected = jnp.sum(log_z**2 * inputs['weights'])
  np.testing.assert_allclose(terms['z'][0], expected, rtol=1e-5)


@pytest.mark.parametrize('extras', EXTRAS)
def test_any_proportion_of_the_terms_has_its_gradient(inputs, extras):
  """Chunks compute it before the proportions are known, and only scale it."""
  arguments = inputs['hidden'], inputs['kernel'], inputs['weights']
  rng = np.random.default_rng(1)

  def sums(chunk):
    def function(*arguments):
      terms = token_loss(inputs, extras, chunk)(*arguments)[1]
      return {name: total for name, (total, _) in terms.items()}

    return jax.vjp(function, *arguments)

  (values, plain), (others, chunked) = sums(0), sums(4)
  for name in values:
    np.testing.assert_allclose(values[name], others[name], rtol=1e-5)
  for _ in range(3):
    given = {name: jnp.float32(rng.normal()) for name in values}
    for x, y in zip(plain(given), chunked(given), strict=True):
      assert jnp.all(jnp.isfinite(x))
      assert jnp.any(x != 0)
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('chunk', [0, 4])
def test_terms_that_are_only_reported_have_no_gradient(inputs, chunk):
  arguments = inputs['hidden'], inputs['kernel'], inputs['weights']
  extras = {'smoothing': 0.1, 'z': 0.01}

  def loss(*arguments):
    terms = token_loss(inputs, extras, chunk)(*arguments)[1]
    return sum(total for name, (total, _) in terms.items() if name in reported)

  reported = {'main', *extras}
  for gradient in jax.grad(loss, (0, 1, 2))(*arguments):
    assert jnp.all(gradient == 0)
  reported = {types.TRAINED}
  for gradient in jax.grad(loss, (0, 1, 2))(*arguments):
    assert jnp.any(gradient != 0)


def test_smoothing_is_that_of_torch(inputs):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  logits = np.array(inputs['hidden'] @ inputs['kernel']).reshape(-1, V)
  targets = np.array(inputs['targets']).reshape(-1)
  given = torch.tensor(logits, requires_grad=True)
  reference = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(
    given, torch.tensor(targets, dtype=torch.int64)
  )
  reference.backward()

  def loss(logits):
    terms = cross_entropy.token_cross_entropy(
      lambda x: x,
      logits[None],
      jnp.asarray(targets)[None],
      jnp.ones((1, len(targets))),
      name='main',
      factors={'smoothing': 0.2},
    )
    return trained(terms, {'smoothing': 0.2})

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
  np.testing.assert_allclose(value, reference.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, given.grad.numpy(), atol=1e-7)


def test_only_extras_with_a_factor_are_trained(config):
  assert cross_entropy.extras(config) == {}
  config.train.z_loss = 1e-4
  assert cross_entropy.extras(config) == {'z': 1e-4}
  config.train.label_smoothing = 0.1
  assert cross_entropy.extras(config) == {'smoothing': 0.1, 'z': 1e-4}


@pytest.mark.parametrize('extras', [{}, {'smoothing': 0.1, 'z': 1e-4}])
def test_chunks_need_a_third_of_the_plain_memory(extras):
  """Vocabulary 32,768, sequence 1,024, batch 8, width 384, by XLA's count."""
  shapes = (
    jax.ShapeDtypeStruct((8, 1024, 384), jnp.float32),
    jax.ShapeDtypeStruct((384, 32768), jnp.float32),
    jax.ShapeDtypeStruct((8, 1024), jnp.int32),
    jax.ShapeDtypeStruct((8, 1024), jnp.float32),
  )

  def temporary(chunk):
    def loss(hidden, kernel, targets, weights):
      terms = cross_entropy.token_cross_entropy(
        lambda hidden: dot_general.project(hidden, kernel),
        hidden,
        targets,
        weights,
        name='main',
        chunk=chunk,
        factors=extras,
      )
      return trained(terms, extras)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(128) < temporary(0) / 3


def test_bfloat16_gradients_are_scaled_in_float32(inputs):
  """One over 4,097 is no bfloat16 number: rounded first, it is 0.02 % off."""
  hidden = inputs['hidden'].astype(jnp.bfloat16)
  ones = jnp.ones((B, L))

  def loss(hidden, scale, chunk):
    terms = cross_entropy.token_cross_entropy(
      lambda h: h @ inputs['kernel'].astype(jnp.bfloat16),
      hidden,
      inputs['targets'],
      ones,
      name='main',
      chunk=chunk,
    )
    return terms['main'][0] * scale

  gradient = jax.grad(loss)
  unscaled = gradient(hidden, 1.0, 4).astype(jnp.float32)
  # A scale that rounds to 1 in bfloat16, but is nearer to the next number.
  scaled = gradient(hidden, 1.0039, 4)
  expected = (unscaled * 1.0039).astype(jnp.bfloat16)
  np.testing.assert_array_equal(scaled, expected)
