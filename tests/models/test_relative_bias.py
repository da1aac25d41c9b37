"""Relative positions: buckets, and the bias of rows and of new positions."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import docstrings

from lm.models import relative_bias

TABLE = jnp.asarray(
  np.random.default_rng(0).normal(size=(relative_bias.BUCKETS, 3)), jnp.float32
)


def test_the_example_of_the_docstring():
  shown = {
    name: [int(x) for x in numbers]
    for name, *numbers in docstrings.lines(relative_bias.bucket)[-3:]
  }
  distance = np.array(shown['distance'])
  causal = relative_bias.bucket(distance, bidirectional=False)
  assert causal.tolist() == shown['causal']
  both = relative_bias.bucket(distance, bidirectional=True)
  assert both.tolist() == shown['bidirectional']


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize(('queries', 'keys'), [(1, 1), (5, 5), (200, 150)])
def test_the_bias_is_that_of_each_pair(queries, keys, bidirectional):
  how = {'bidirectional': bidirectional}
  found = relative_bias.bias(TABLE, queries, keys, **how)
  distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  expected = TABLE[relative_bias.bucket(distance, **how)]
  np.testing.assert_array_equal(found[0], np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize('bidirectional', [True, False])
def test_new_positions_have_the_bias_of_their_row(bidirectional):
  how = {'bidirectional': bidirectional}
  whole = relative_bias.bias(TABLE, 300, 300, **how)
  position = jnp.array([[0, 1], [298, 299]])
  found = relative_bias.bias_at(TABLE, position, 300, **how)
  for row in range(2):
    np.testing.assert_array_equal(found[row], whole[0][:, position[row]])
