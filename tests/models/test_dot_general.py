"""The product of a layer: its gradient, and what XLA copies for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lm.models import dot_general as dot_general_lib

# (shape of x, of the kernel, how many axes both share)
LAYERS = {
  'widening': ((2, 5, 4), (4, 12), 1),
  'narrowing': ((2, 5, 12), (12, 4), 1),
  'into heads': ((2, 5, 8), (8, 2, 6), 1),
  'out of heads': ((2, 5, 2, 6), (2, 6, 8), 2),
  'without rows': ((4,), (4, 3), 1),
}


def numbers(x, kernel, count):
  x_axes = tuple(range(x.ndim - count, x.ndim))
  return (x_axes, tuple(range(count))), ((), ())


def arrays(shapes, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('case', LAYERS)
def test_value_and_gradients_are_those_of_jax(case, dtype):
  *shapes, count = LAYERS[case]
  x, kernel = arrays(shapes, dtype)

  def value_and_gradients(dot_general):
    def product(x, kernel):
      return dot_general(x, kernel, numbers(x, kernel, count))

    value, pull = jax.vjp(product, x, kernel)
    (cotangent,) = arrays([value.shape], dtype)
    return value, *pull(cotangent)

  for ours, theirs in zip(
    value_and_gradients(dot_general_lib.dot_general),
    value_and_gradients(lax.dot_general),
    strict=True,
  ):
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_allclose(
      np.asarray(ours, np.float32),
      np.asarray(theirs, np.float32),
      rtol=1e-5 if dtype == jnp.float32 else 1e-2,
      atol=1e-5 if dtype == jnp.float32 else 1e-2,
    )


@pytest.mark.parametrize('case', ['widening', 'narrowing'])
def test_all_three_products_have_the_precision(case):
  *shapes, count = LAYERS[case]
  x, kernel = arrays(shapes)

  def loss(x, kernel):
    axes = numbers(x, kernel, count)
    return jnp.sum(
      dot_general_lib.dot_general(x, kernel, axes, lax.Precision.HIGHEST)
    )

  text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
  assert text.count('dot_general[') == text.count('Precision.HIGHEST, ') == 3


@pytest.mark.parametrize(
  'axes', [(((1,), (0,)), ((), ())), (((2,), (1,)), ((), ()))]
)
def test_other_axes_are_refused(axes):
  with pytest.raises(ValueError, match='not the axes of a layer'):
    dot_general_lib.dot_general(jnp.zeros((3, 4, 4)), jnp.zeros((4, 4)), axes)


@pytest.mark.parametrize(('inside', 'outside'), [(64, 512), (512, 64)])
def test_the_wide_side_is_not_copied(inside, outside):
  """Rows are 1,024, so the copy would have 512 x 1,024 numbers."""
  x, kernel = arrays([(4, 256, inside), (inside, outside)])

  def copies(dot_general):
    def loss(kernel, x):
      axes = numbers(x, kernel, 1)
      return jnp.sum(jnp.tanh(dot_general(jnp.tanh(x), kernel, axes)))

    compiled = jax.jit(jax.grad(loss)).lower(kernel, x).compile()
    return 'f32[512,1024]' in compiled.as_text()

  assert not copies(dot_general_lib.dot_general)
  if inside < outside:  # the side that JAX itself has on the left
    assert copies(lax.dot_general)


def test_rematerialization_finds_the_product():
  """A policy that keeps products keeps this one."""
  x, kernel = arrays([(8, 4), (4, 12)])
  axes = numbers(x, kernel, 1)
  keep_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

  def forward_products(policy):
    @functools.partial(jax.checkpoint, policy=policy)
    def layer(x, kernel):
      return jnp.sum(jnp.tanh(dot_general_lib.dot_general(x, kernel, axes)))

    return str(jax.make_jaxpr(jax.grad(layer))(x, kernel)).count('dot_general')

  nothing = jax.checkpoint_policies.nothing_saveable
  assert forward_products(keep_products) < forward_products(nothing)
