"""The train step: a pure function of state and batch, and the one division."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import types
from lm.data import tokenizer
from lm.runtime import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step reads and writes.

  step: int32, steps done.
  params: trained parameters.
  opt_state: the optimizer's slots, for `params` only.
  key: uint32 [2], the run's randomness; steps fold their number into it.
  average: average of `params` over the steps, see `make_train_step`; {}: none.
  """

  step: jax.Array
  params: types.Params
  opt_state: Any
  key: jax.Array
  average: types.Params = dataclasses.field(default_factory=dict)

  @property
  def evaluated(self) -> types.Params:
    """The parameters that are evaluated: the average where there is one."""
    return self.average or self.params


Metrics = dict[str, Any]


def named_key(key: jax.Array, name: str) -> jax.Array:
  """A key for a purpose; unlike those of split, independent of call order."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def init_state(
  model: types.Model,
  optimizer: optax.GradientTransformation,
  seed: int,
  *,
  average: bool = False,
) -> TrainState:
  """A fresh state; its average, if any, is the initial parameters."""
  key = jax.random.PRNGKey(seed)
  params = model.init(named_key(key, 'params'))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    key=key,
    # A copy, since one buffer cannot be donated twice.
    average=jax.tree.map(jnp.copy, params) if average else {},
  )


def abstract_state(
  model: types.Model,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  rules: Sequence[tuple[str, jax.sharding.PartitionSpec]],
  *,
  average: bool = False,
) -> TrainState:
  """The state's shapes, dtypes and shardings, without any array.

  Args:
    rules: parameter path -> PartitionSpec, from the model's family.
  """
  shapes = jax.eval_shape(
    lambda: init_state(model, optimizer, seed=0, average=average)
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.of_state(mesh, shapes, rules),
  )


def make_train_step(
  objective: types.Objective,
  model: types.Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  microbatches: int,
  ema: float = 0.0,
) -> Callable[[TrainState, types.Batch], tuple[TrainState, Metrics]]:
  """(state, batch) -> (state, metrics), not yet compiled.

  Metrics are sums, divided where they are logged: `terms` {name: (sum,
  weight)}, `gradient_norm` (before clipping), `update_norm`, `learning_rate`,
  `tokens` (of both sides), `loss_tokens`, `text_loss_tokens`.

  Where the state has an average (Polyak and Juditsky 1992), step t, from 0,
  moves it to d * average + (1 - d) * params, with the new params and d =
  min(ema, (1 + t) / (10 + t)). With this warmup of the decay, which is that of
  TensorFlow's `ExponentialMovingAverage(num_updates=t)`, the initial parameters
  are soon forgotten, and the average needs no correction for them.
  """

  def objective_terms(params, batch, key):
    return objective.loss(model, params, batch, key, True)

  def trained_loss(params, batch, key, weights):
    terms = objective_terms(params, batch, key)
    sums = {name: value for name, (value, _) in terms.items()}
    loss = sum(
      coefficient * _divide(sums[name], weights[name])
      for name, coefficient in objective.coefficients.items()
    )
    return loss, sums

  gradient = jax.value_and_grad(trained_loss, has_aux=True)

  def step(state: TrainState, batch: types.Batch):
    key = jax.random.fold_in(named_key(state.key, 'loss'), state.step)
    # Weights depend on the batch alone, so XLA drops the model from this pass.
    terms = objective_terms(state.params, batch, key)
    weights = {name: weight for name, (_, weight) in terms.items()}
    if microbatches == 1:
      (_, sums), gradients = gradient(state.params, batch, key, weights)
    else:
      sums, gradients = _accumulate(
        gradient, state.params, batch, key, weights, microbatches
      )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      key=state.key,
      average=_average(state, params, ema),
    )
    metrics = {
      'terms': {name: (sums[name], weights[name]) for name in weights},
      'gradient_norm': optax.tree.norm(gradients),
      'update_norm': optax.tree.norm(updates),
      'learning_rate': schedule(state.step),
      **_count(batch),
    }
    return new_state, metrics

  return step


def make_evaluate_step(
  objective: types.Objective, model: types.Model
) -> Callable[[types.Params, types.Batch], types.Terms]:
  """(params, batch) -> terms, without dropout; not yet compiled."""
  return lambda params, batch: objective.loss(model, params, batch, None, False)


def jit_step(step, mesh: jax.sharding.Mesh, abstract: TrainState):
  """Jits a train step; the state is donated and keeps its shardings."""
  state_shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(state_shardings, sharding.of_batch(mesh)),
    # Pinned: XLA may otherwise return replicated what was sharded.
    out_shardings=(state_shardings, sharding.replicated(mesh)),
  )


def _average(state: TrainState, params: types.Params, ema: float):
  """The next average; {} without one."""
  if not state.average:
    return state.average
  decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
  return jax.tree.map(
    lambda average, new: average + (1.0 - decay) * (new - average),
    state.average,
    params,
  )


def _divide(total, weight):
  """total / weight, and 0 (also in its gradient) where the weight is 0."""
  return total / jnp.where(weight == 0, 1.0, weight) * (weight != 0)


def _accumulate(gradient, params, batch, key, weights, microbatches):
  """Sums of terms and gradients over parts of the batch, one at a time."""

  def split(x_BxL):
    # Strided parts: each device already holds its rows of every part.
    parts = x_BxL.reshape(-1, microbatches, *x_BxL.shape[1:])
    return jnp.moveaxis(parts, 1, 0)

  def body(carry, xs):
    part, index = xs
    (_, sums), gradients = gradient(
      params, part, jax.random.fold_in(key, index), weights
    )
    return jax.tree.map(jnp.add, carry, (sums, gradients)), None

  zeros = (
    {name: jnp.zeros((), jnp.float32) for name in weights},
    jax.tree.map(jnp.zeros_like, params),
  )
  xs = (jax.tree.map(split, batch), jnp.arange(microbatches))
  return jax.lax.scan(body, zeros, xs)[0]


def _count(batch: types.Batch) -> dict[str, jax.Array]:
  predicted = batch.weights_BxL > 0
  text = batch.targets_BxL >= tokenizer.NUM_SPECIAL
  tokens = jnp.sum(batch.segment_BxL > 0)
  if batch.encoder_segment_BxM is not None:
    tokens += jnp.sum(batch.encoder_segment_BxM > 0)
  return {
    'tokens': tokens,
    'loss_tokens': jnp.sum(predicted),
    'text_loss_tokens': jnp.sum(predicted & text),
  }
