"""The product of activations and weights, with an explicit gradient.

JAX's gradient of the weights is `gradient x activations`, transposed
afterwards. On CPU, XLA multiplies only operands whose contracted axis is last
on the left and first on the right, so it copies the left one to the other
order. Where that is the wide side of an MLP or of the vocabulary, the copy
takes up to four times as long as the product. Here the narrower operand is on
the left.
"""

import functools
import math

import jax
from jax import lax


def dot_general(
  x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None
) -> jax.Array:
  """A special case of `lax.dot_general`, for Flax's layers to use.

  Args:
    x: [..., C...].
    kernel: [C..., O...].
    dimension_numbers: the axes of C, without batch axes.
    precision: see `lax.dot_general`.

  Returns:
    [..., O...].

  Raises:
    ValueError: C is not last in x and first in the kernel.
  """
  (x_axes, kernel_axes), batch = dimension_numbers
  count = len(kernel_axes)
  ends = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
  if (tuple(x_axes), tuple(kernel_axes)) != ends or any(batch):
    raise ValueError(f'not the axes of a layer: {dimension_numbers}')
  return _product(count, precision, x, kernel)


def project(x_xC: jax.Array, kernel_CxO: jax.Array) -> jax.Array:
  """[..., C] and [C, O] to [..., O]."""
  return _product(1, None, x_xC, kernel_CxO)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(count, precision, x, kernel):
  return _forward(count, precision, x, kernel)[0]


def _forward(count, precision, x, kernel):
  # Not `_product`: policies of rematerialization look for `lax.dot_general`.
  contract_inner = _last(count, x), tuple(range(count))
  y = lax.dot_general(x, kernel, (contract_inner, ((), ())), precision)
  return y, (x, kernel)


def _backward(count, precision, residuals, gradient):
  x, kernel = residuals
  outs = _last(kernel.ndim - count, kernel)
  contract_outs = _last(len(outs), gradient), outs
  rows = tuple(range(x.ndim - count))
  contract_rows = rows, rows
  d_x = lax.dot_general(gradient, kernel, (contract_outs, ((), ())), precision)
  if math.prod(kernel.shape[:count]) <= math.prod(kernel.shape[count:]):
    d_kernel = lax.dot_general(
      x, gradient, (contract_rows, ((), ())), precision
    )
  else:
    d_turned = lax.dot_general(
      gradient, x, (contract_rows, ((), ())), precision
    )
    order = (*range(len(outs), kernel.ndim), *range(len(outs)))
    d_kernel = lax.transpose(d_turned, order)
  return d_x, d_kernel


_product.defvjp(_forward, _backward)


def _last(count: int, x: jax.Array) -> tuple[int, ...]:
  return tuple(range(x.ndim - count, x.ndim))
