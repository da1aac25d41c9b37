"""Heads that tasks read out beside tokens, named in `model.heads`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import errors, field, types
from lm.models import blocks


class Pooler(nn.Module):
  """BERT's pooler: a tanh layer, for the hidden state of the first token.

  Callers select the positions. Devlin et al. 2019, section 3, call the result
  C.
  """

  cfg: blocks.TransformerConfig

  @nn.compact
  def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
    cfg = self.cfg
    dense = blocks.dense(cfg, cfg.D, name='dense')
    return jnp.tanh(dense(hidden_BxLxD))


# Name -> module, called with hidden states [B, l, D].
HEADS = {'pooler': Pooler}


def check(config):
  """Raises UserError unless `model.heads` names heads, each once."""
  names = tuple(config.model.heads)
  if len(set(names)) < len(names):
    raise errors.UserError(f'model.heads={names} names one twice; give it once')
  for name in names:
    if name not in HEADS:
      raise errors.UserError(
        f"unknown head '{name}' in model.heads; choose from {', '.join(HEADS)}"
      )


FIELDS = field.section(
  heads=field.Field(
    (),
    "Heads of tasks beside the readout; ('pooler',) is BERT's.",
    check=check,
  ),
)


def init(cfg: blocks.TransformerConfig, key: jax.Array) -> types.Params:
  """Parameters of the heads that `cfg.heads` names."""
  x_1x1xD = jnp.zeros((1, 1, cfg.D), cfg.dtype)
  return {
    name: HEADS[name](cfg).init(jax.random.fold_in(key, place), x_1x1xD)[
      'params'
    ]
    for place, name in enumerate(cfg.heads)
  }


def apply(
  cfg: blocks.TransformerConfig,
  name: str,
  params: types.Params,
  hidden_BxLxD: jax.Array,
) -> jax.Array:
  """Output of the head `name` at hidden states."""
  variables = {'params': params['heads'][name]}
  return HEADS[name](cfg).apply(variables, hidden_BxLxD)
