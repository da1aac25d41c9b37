"""Optimizers and learning-rate schedules, from optax, with parameter rules."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm import errors, field, models, types
from lm.runtime import parameter_rules


def _constant(cfg):
  return optax.constant_schedule(cfg.learning_rate)


def _linear(cfg):
  final = cfg.learning_rate * cfg.final_fraction
  steps = cfg.schedule_steps - cfg.warmup_steps
  return optax.linear_schedule(cfg.learning_rate, final, steps)


def _cosine(cfg):
  """Loshchilov and Hutter 2017, equation 5, without restarts."""
  steps = cfg.schedule_steps - cfg.warmup_steps
  return optax.cosine_decay_schedule(
    cfg.learning_rate, steps, alpha=cfg.final_fraction
  )


def _inverse_sqrt(cfg):
  """Vaswani et al. 2017, equation 3, with the peak in place of its width.

  Step n, from 1, has the rate peak * sqrt(warmup_steps / n). Neither
  `schedule_steps` nor `final_fraction` matters.
  """
  warmup = max(1, cfg.warmup_steps)

  def schedule(count):
    # join_schedules also evaluates counts below 0, and discards the result.
    step = jnp.maximum(warmup, cfg.warmup_steps + count + 1)
    return cfg.learning_rate * jnp.sqrt(warmup / step)

  return schedule


def _wsd(cfg):
  """Warmup, stable, decay (Hu et al. 2024, section 4.2).

  The decay takes the last `decay_fraction` of `schedule_steps` and falls as
  1 - sqrt(x), which Hägele et al. 2024, section 3, found to beat a line.
  """
  steps = decay_steps(cfg)
  stable = cfg.schedule_steps - cfg.warmup_steps - steps

  def decay(count):
    fallen = jnp.sqrt(jnp.clip(count / steps, 0.0, 1.0))
    return cfg.learning_rate * (1 - (1 - cfg.final_fraction) * fallen)

  return optax.join_schedules([_constant(cfg), decay], [stable])


def decay_steps(cfg) -> int:
  """Steps in the final decay of `wsd`, one at least."""
  return max(1, round(cfg.decay_fraction * cfg.schedule_steps))


# Schedules after the warmup, as functions of the steps since its end.
SCHEDULES: dict[str, Callable[[Any], optax.Schedule]] = {
  'cosine': _cosine,
  'linear': _linear,
  'constant': _constant,
  'inverse_sqrt': _inverse_sqrt,
  'wsd': _wsd,
}


def make_schedule(config) -> optax.Schedule:
  """Learning rate by step: a linear warmup to the peak, then the schedule.

  The warmup counts towards `schedule_steps`. After these, cosine, linear and
  wsd stay at the final rate, constant at the peak, and inverse_sqrt keeps
  falling. Step 0 already moves: its rate is peak / warmup_steps.
  """
  cfg = config.optimizer
  after = SCHEDULES[cfg.schedule](cfg)
  if not cfg.warmup_steps:
    return after
  first = cfg.learning_rate / cfg.warmup_steps
  warmup = optax.linear_schedule(first, cfg.learning_rate, cfg.warmup_steps - 1)
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


# Optimizer -> the fields that it reads, with their defaults.
DEFAULTS: dict[str, Mapping[str, float]] = {
  'sgd': {'momentum': 0.9, 'weight_decay': 0.1},
  'rmsprop': {
    'b2': 0.9,
    'epsilon': 1e-8,
    'momentum': 0.0,
    'weight_decay': 0.0,
  },
  'adam': {'b1': 0.9, 'b2': 0.999, 'epsilon': 1e-8, 'weight_decay': 0.0},
  'adamw': {'b1': 0.9, 'b2': 0.95, 'epsilon': 1e-8, 'weight_decay': 0.1},
  'adafactor': {'epsilon': 1e-30, 'weight_decay': 0.0},
  'lion': {'b1': 0.9, 'b2': 0.99, 'weight_decay': 0.1},
  'muon': {
    'momentum': 0.95,
    'b1': 0.9,
    'b2': 0.95,
    'epsilon': 1e-8,
    'weight_decay': 0.1,
  },
}


def _decay_mask(rules: types.ParameterRules):
  return functools.partial(parameter_rules.tree_match, rules.decay)


def _decayed(cfg, rules: types.ParameterRules):
  return optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask(rules))


def _sgd(cfg, schedule, rules):
  """Heavy-ball momentum (Polyak 1964); the decay is part of the gradient."""
  sgd = optax.sgd(schedule, momentum=cfg.momentum or None)
  return optax.chain(_decayed(cfg, rules), sgd)


def _rmsprop(cfg, schedule, rules):
  """Tieleman and Hinton 2012, lecture 6.5; decay as in `_sgd`.

  The mean square starts at 0 and is not corrected for it.
  """
  rmsprop = optax.rmsprop(
    schedule,
    decay=cfg.b2,
    eps=cfg.epsilon,
    eps_in_sqrt=False,
    momentum=cfg.momentum or None,
  )
  return optax.chain(_decayed(cfg, rules), rmsprop)


def _adam(cfg, schedule, rules):
  """Kingma and Ba 2015, algorithm 1; decay as in `_sgd`."""
  adam = optax.adam(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.epsilon)
  return optax.chain(_decayed(cfg, rules), adam)


def _adamw(cfg, schedule, rules):
  """Loshchilov and Hutter 2019, algorithm 2: the decay is a step of its own."""
  return optax.adamw(
    schedule,
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.epsilon,
    weight_decay=cfg.weight_decay,
    mask=_decay_mask(rules),
  )


def _adafactor(cfg, schedule, rules):
  """Shazeer and Stern 2018, algorithms 4 and 5, on each layer's matrices.

  The rate is relative to a matrix's root mean square: 1e-2 is their largest.
  The decay is that of adamw.
  """
  step = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=1, epsilon=cfg.epsilon),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(1e-3),
  )
  return optax.chain(
    _on_matrices(step, rules.matrices),
    _decayed(cfg, rules),
    optax.scale_by_learning_rate(schedule),
  )


def _lion(cfg, schedule, rules):
  """Chen et al. 2023, algorithm 2.

  All its steps have one size: rates are 3 to 10 times smaller than adamw's, and
  weight decay is larger by as much (section 5).
  """
  return optax.lion(
    schedule,
    b1=cfg.b1,
    b2=cfg.b2,
    weight_decay=cfg.weight_decay,
    mask=_decay_mask(rules),
  )


def _muon(cfg, schedule, rules):
  """Jordan et al. 2024, on each layer's matrices, and adamw on the rest.

  Both share one rate and one decay (Liu et al. 2025, equation 4).
  """
  muon = optax.chain(
    contrib.scale_by_muon(
      beta=cfg.momentum,
      weight_dimension_numbers=functools.partial(
        _muon_dimensions, rules.matrices
      ),
    ),
    optax.stateless(functools.partial(_scale_like_adamw, rules.matrices)),
    _decayed(cfg, rules),
    optax.scale_by_learning_rate(schedule),
  )
  return optax.partition(
    {'muon': muon, 'adamw': _adamw(cfg, schedule, rules)},
    functools.partial(parameter_rules.tree_match, rules.muon),
  )


def _muon_dimensions(matrices, params):
  def dimensions(path, x):
    layers, rows = parameter_rules.match(
      matrices, parameter_rules.path_name(path)
    )
    return contrib.MuonDimensionNumbers(
      reduction_axis=tuple(range(layers, layers + rows)),
      output_axis=tuple(range(layers + rows, x.ndim)),
    )

  return jax.tree_util.tree_map_with_path(dimensions, params)


def _scale_like_adamw(matrices, updates, params):
  """Scales updates to a root mean square of about 0.2, as adamw's have.

  That of an orthogonal matrix is 1 / sqrt(its longer side).
  """
  del params

  def scale(path, update):
    _, view = _view(matrices, path, update)
    return 0.2 * max(view[-2:]) ** 0.5 * update

  return jax.tree_util.tree_map_with_path(scale, updates)


def _on_matrices(
  inner: optax.GradientTransformation, matrices: Sequence[tuple[str, Any]]
) -> optax.GradientTransformation:
  """Runs `inner` on each matrix and vector separately, as the rules cut them.

  Without this, optax treats a stack of layers as one array: norms would mix
  layers, and rows and columns would be those of heads, not of matrices.
  """

  def init_one(path, param):
    layers, view = _view(matrices, path, param)
    return _over(layers, inner.init)(param.reshape(view))

  def update_one(path, update, state, param):
    layers, view = _view(matrices, path, param)
    new, state = _over(layers, inner.update)(
      update.reshape(view), state, param.reshape(view)
    )
    return new.reshape(update.shape), state

  def init(params):
    return jax.tree_util.tree_map_with_path(init_one, params)

  def update(updates, state, params):
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    others = [structure.flatten_up_to(tree) for tree in (state, params)]
    results = [
      update_one(*leaf, *other)
      for leaf, *other in zip(leaves, *others, strict=True)
    ]
    return tuple(structure.unflatten(x) for x in zip(*results, strict=True))

  return optax.GradientTransformation(init, update)


def _view(matrices, path, x) -> tuple[int, tuple[int, ...]]:
  """Number of layer axes, and the shape with matrices or vectors after them."""
  layers, rows = parameter_rules.match(
    matrices, parameter_rules.path_name(path)
  )
  whole = x.shape[:layers]
  if rows:
    whole = (*whole, math.prod(x.shape[layers : layers + rows]))
  return layers, (*whole, math.prod(x.shape[layers + rows :]))


def _over(layers: int, function):
  for _ in range(layers):
    function = jax.vmap(function)
  return function


OPTIMIZERS = {
  'adamw': _adamw,
  'sgd': _sgd,
  'rmsprop': _rmsprop,
  'adam': _adam,
  'adafactor': _adafactor,
  'lion': _lion,
  'muon': _muon,
}

# What only some optimizers read.
READ_BY_SOME = ('weight_decay', 'b1', 'b2', 'epsilon', 'momentum')


def _check_warmup(config):
  cfg = config.optimizer
  if None in (cfg.warmup_steps, cfg.schedule_steps):
    return
  if cfg.warmup_steps >= cfg.schedule_steps:
    raise errors.UserError(
      f'optimizer.warmup_steps={cfg.warmup_steps} leaves nothing of '
      f'optimizer.schedule_steps={cfg.schedule_steps}; lower the first or '
      'leave it out'
    )


def _check_decay(config):
  cfg = config.optimizer
  if cfg.schedule != 'wsd' or None in (cfg.warmup_steps, cfg.schedule_steps):
    return
  if cfg.schedule_steps - decay_steps(cfg) < cfg.warmup_steps:
    raise errors.UserError(
      f'optimizer.decay_fraction={cfg.decay_fraction} of '
      f'optimizer.schedule_steps={cfg.schedule_steps} does not fit behind '
      f'optimizer.warmup_steps={cfg.warmup_steps}; lower one'
    )


def _read_by_some(
  name: str, meaning: str, most: float | None = None
) -> field.Field:
  """A field in DEFAULTS; None where the optimizer does not read it."""

  def check(config):
    optimizer, value = config.optimizer.name, config.optimizer[name]
    reads = DEFAULTS[optimizer]
    if value is not None and name not in reads:
      raise errors.UserError(
        f"optimizer.{name}={value} is not read by optimizer.name='{optimizer}'"
        f', which reads {", ".join(reads)}; leave it out'
      )

  known: dict[float, list[str]] = {}
  for optimizer, reads in DEFAULTS.items():
    if name in reads:
      known.setdefault(reads[name], []).append(optimizer)
  return field.Field(
    None,
    meaning,
    kind=float,
    least=0,
    most=most,
    none='; '.join(f'{v:g} ({", ".join(names)})' for v, names in known.items()),
    derive=lambda config: DEFAULTS[config.optimizer.name].get(name),
    check=check,
  )


FIELDS = field.section(
  name=field.Field('adamw', 'The optimizer.', choices=tuple(OPTIMIZERS)),
  learning_rate=field.Field(1e-3, 'Peak learning rate.', least=0),
  schedule=field.Field(
    'cosine',
    'Learning rate after a linear warmup; wsd is warmup, stable, decay.',
    choices=tuple(SCHEDULES),
  ),
  schedule_steps=field.Field(
    None,
    'Step at which the schedule ends. A run continued past it keeps the final '
    'rate; inverse_sqrt has no end.',
    kind=int,
    least=1,
    none='the budget at the first start',
    derive=lambda config: config.train.steps,
  ),
  warmup_steps=field.Field(
    None,
    'Steps of the warmup.',
    kind=int,
    least=0,
    none='a tenth of schedule_steps',
    derive=lambda config: config.optimizer.schedule_steps // 10,
    check=_check_warmup,
  ),
  final_fraction=field.Field(
    0.1,
    'Final learning rate, as a share of learning_rate.',
    least=0,
    most=1,
  ),
  decay_fraction=field.Field(
    0.1,
    'Share of schedule_steps in which the rate falls.',
    least=0,
    most=1,
    read_with={'schedule': ('wsd',)},
    check=_check_decay,
  ),
  weight_decay=_read_by_some(
    'weight_decay',
    'Weight decay: part of the gradient for sgd, rmsprop and adam, a step of '
    'its own for the others.',
  ),
  # At 1 the bias correction divides by 0.
  b1=_read_by_some('b1', 'Decay of the mean gradient.', most=0.99999),
  b2=_read_by_some('b2', 'Decay of the mean square.', most=0.99999),
  epsilon=_read_by_some(
    'epsilon', 'Added to the denominator; for adafactor to the squares.'
  ),
  momentum=_read_by_some('momentum', 'Momentum; 0: none.', most=1),
  clip_norm=field.Field(
    1.0, 'Largest global norm of the gradient; 0: no clipping.', least=0
  ),
)


def make(config) -> optax.GradientTransformation:
  """The configured optimizer, after clipping the gradient's global norm."""
  cfg = config.optimizer
  rules = models.family(config).rules
  step = OPTIMIZERS[cfg.name](cfg, make_schedule(config), rules)
  if not cfg.clip_norm:
    return step
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), step)
