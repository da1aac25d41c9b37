"""Model families behind one set of pure functions, by name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lm import types
from lm.models import (
  attention as attention_lib,
  attention_kernels,
  base,
  blocks,
  encoder_decoder,
  transformer,
)
from lm.runtime import sharding

if TYPE_CHECKING:  # It imports this package.
  from lm.objectives import base as objectives_base


def _make_transformer(
  config, objective: objectives_base.Objective, mesh: jax.sharding.Mesh | None
) -> base.Model:
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  chosen = choose_attention(config, objective, device)
  if mesh is None and set(chosen.values()) & set(attention_kernels.KERNELS):
    mesh = sharding.make_mesh(config)
  cfg = _shape(config, objective.capacity, mesh)
  stacks = {
    side: dataclasses.replace(
      cfg, attention=attention, implementation=chosen[side]
    )
    for side, (attention, _) in _sides(config, objective).items()
  }
  if config.model.architecture != 'encoder_decoder':
    return transformer.make(*stacks.values())
  return encoder_decoder.make(
    dataclasses.replace(stacks['encoder'], N=config.model.num_encoder_layers),
    dataclasses.replace(stacks['decoder'], cross=True),
  )


def _shape(
  config, capacity: types.Size, mesh: jax.sharding.Mesh | None
) -> blocks.TransformerConfig:
  """What all stacks of a model share; the rest differs by side."""
  model: Any = config.model
  return blocks.TransformerConfig(
    V=config.data.vocab_size,
    L=max(capacity.tokens, capacity.encoder_tokens),
    N=model.num_layers,
    D=model.width,
    H=model.num_heads,
    G=model.num_kv_heads,
    K=model.head_size,
    F=model.mlp_width,
    activation=model.activation,
    position=model.position,
    token_types=model.token_types,
    norm=model.norm,
    norm_epsilon=model.norm_epsilon,
    norm_placement=model.norm_placement,
    embedding_norm=model.embedding_norm,
    rotary_base=model.rotary_base,
    scale_attention=model.scale_attention,
    bias=model.bias,
    tie_embeddings=model.tie_embeddings,
    scale_embeddings=model.scale_embeddings,
    readout=model.readout,
    scale_readout=model.scale_readout,
    heads=tuple(model.heads),
    dropout=model.dropout,
    dtype=jnp.dtype(model.dtype),
    scan_layers=model.scan_layers,
    remat=model.remat,
    attention='',
    implementation='',
    mesh=mesh,
  )


def _sides(
  config, objective: objectives_base.Objective
) -> dict[str, tuple[str, int]]:
  """Each stack's attention to itself and the length of its rows."""
  attention, capacity = objective.attention, objective.capacity
  architecture = config.model.architecture
  if architecture != 'encoder_decoder':
    return {architecture: (attention, capacity.tokens)}
  return {
    'encoder': ('bidirectional', capacity.encoder_tokens),
    'decoder': (attention, capacity.tokens),
  }


FAMILIES = {'transformer': _make_transformer}


def make(
  config,
  objective: objectives_base.Objective,
  mesh: jax.sharding.Mesh | None = None,
) -> base.Model:
  """The model of a resolved config.

  Args:
    objective: says who sees whom, and how long rows are.
    mesh: what the model will run on. Its devices need not be here: their
      platform decides what attention runs. None: `sharding.make_mesh(config)`
      for kernels; how activations are split is left to XLA.

  Raises:
    UserError: `model.attention` cannot run there.
  """
  return FAMILIES[config.model.family](config, objective, mesh)


def choose_attention(
  config, objective: objectives_base.Objective, device: jax.Device
) -> dict[str, str]:
  """What computes attention on devices like `device`, see `attention.choose`.

  Returns:
    The implementation of each stack: of `encoder`, of `decoder`, or of both.

  Raises:
    UserError: `model.attention` cannot run there.
  """
  model = config.model
  capability = getattr(device, 'compute_capability', '')
  numeric = capability.replace('.', '', 1).isdecimal()
  return {
    side: attention_lib.choose(
      model.attention,
      attention_kernels.Case(
        platform=device.platform,
        # AMD's are names, gfx90a.
        compute_capability=float(capability) if numeric else 0.0,
        attention=attention,
        L=length,
        K=model.head_size,
        dtype=model.dtype,
        one_segment=config.data.cross_document_attention,
        bias=model.position == 'relative',
      ),
    )
    for side, (attention, length) in _sides(config, objective).items()
  }
