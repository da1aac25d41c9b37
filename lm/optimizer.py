"""Optimizers and learning-rate schedules, from optax, with parameter rules."""

import optax

from lm import rules

# Whether weight decay applies: to matrices, not to norms, biases, positions.
DECAY = (
  (r'norm/|/bias$|/position/', False),
  (r'/(kernel|embedding|readout_kernel)$', True),
)


def _cosine(peak, steps, final):
  return optax.cosine_decay_schedule(peak, steps, alpha=final)


def _linear(peak, steps, final):
  return optax.linear_schedule(peak, peak * final, steps)


def _constant(peak, steps, final):
  del steps, final
  return optax.constant_schedule(peak)


SCHEDULES = {'cosine': _cosine, 'linear': _linear, 'constant': _constant}


def make_schedule(config) -> optax.Schedule:
  """Learning rate by step: a linear warmup to the peak, then the schedule.

  The warmup counts towards `schedule_steps`; past them the final rate stays.
  Step 0 already moves: its rate is peak / warmup_steps.
  """
  cfg = config.optimizer
  after = SCHEDULES[cfg.schedule](
    cfg.learning_rate,
    max(1, cfg.schedule_steps - cfg.warmup_steps),
    cfg.final_fraction,
  )
  if not cfg.warmup_steps:
    return after
  first = cfg.learning_rate / cfg.warmup_steps
  warmup = optax.linear_schedule(first, cfg.learning_rate, cfg.warmup_steps - 1)
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def _decay_mask(params):
  return rules.tree_match(DECAY, params)


def _adamw(cfg, schedule):
  return optax.adamw(
    schedule,
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.epsilon,
    weight_decay=cfg.weight_decay,
    mask=_decay_mask,
  )


def _sgd(cfg, schedule):
  decay = optax.add_decayed_weights(cfg.weight_decay, mask=_decay_mask)
  sgd = optax.sgd(schedule, momentum=cfg.momentum or None)
  return optax.chain(decay, sgd)


OPTIMIZERS = {'adamw': _adamw, 'sgd': _sgd}


def make(config) -> optax.GradientTransformation:
  """Clips the global norm of the gradient, then steps."""
  cfg = config.optimizer
  step = OPTIMIZERS[cfg.name](cfg, make_schedule(config))
  if not cfg.clip_norm:
    return step
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), step)
