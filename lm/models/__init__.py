"""Model families behind one set of pure functions, by name."""

from typing import Any

import jax.numpy as jnp

from lm.models import base, transformer


def _make_transformer(config, attention: str) -> base.Model:
  model: Any = config.model
  return transformer.make(
    transformer.TransformerConfig(
      V=config.data.vocab_size,
      L=config.data.sequence_length,
      N=model.num_layers,
      D=model.width,
      H=model.num_heads,
      G=model.num_kv_heads,
      F=model.mlp_width,
      activation=model.activation,
      position=model.position,
      norm=model.norm,
      norm_epsilon=model.norm_epsilon,
      rotary_base=model.rotary_base,
      bias=model.bias,
      tie_embeddings=model.tie_embeddings,
      scale_embeddings=model.scale_embeddings,
      dropout=model.dropout,
      dtype=jnp.dtype(model.dtype),
      scan_layers=model.scan_layers,
      remat=model.remat,
      attention=attention,
    )
  )


FAMILIES = {'transformer': _make_transformer}


def make(config, attention: str) -> base.Model:
  """The model of a resolved config.

  Args:
    attention: the objective's, see `objectives.base.Objective`.
  """
  return FAMILIES[config.model.family](config, attention)
