"""Small states whose bits are known, saved and compared."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.training import checkpoint, step


def make(number: int) -> step.TrainState:
  """A small state whose bits depend on the step, odd floats included."""
  values = np.random.default_rng(number).standard_normal((40, 32), np.float32)
  values[0, :4] = [-0.0, 1e-42, np.float32(2) ** -126, -1e38]
  return step.TrainState(
    step=jnp.int32(number),
    params={'trunk': {'kernel': jnp.asarray(values)}},
    opt_state={'slot': jnp.asarray(values[::-1] * 3)},
    key=jax.random.PRNGKey(number),
  )


def progress(number: int) -> dict:
  return {
    'position': number,
    'metrics_length': 1000 + number,
    'accumulator': {'terms': {'causal': [0.1 * number, 3.0]}},
    'best': None,
  }


def abstract() -> step.TrainState:
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), make(0)
  )


def same(state: step.TrainState, other: step.TrainState) -> bool:
  """Whether two states have the same bits."""
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes() and x.dtype == y.dtype
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
  )


def save(checkpoints: checkpoint.Checkpoints, number: int, loss=None):
  checkpoints.save(
    make(number), progress(number), {'seed': 0}, validation_loss=loss
  )
  checkpoints.wait()
