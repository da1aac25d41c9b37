"""Tiny models of one stack in the shapes of releases, and batches for them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import tokenizer

GPT2 = {
  'activation': 'gelu_tanh',
  'position': 'learned',
  'norm': 'layernorm',
  'bias': True,
  'tie_embeddings': True,
}
LLAMA = {
  'activation': 'swiglu',
  'position': 'rotary',
  'norm': 'rmsnorm',
  'bias': False,
  'tie_embeddings': False,
  'num_kv_heads': 2,
}
BERT = {
  'activation': 'gelu',
  'position': 'learned',
  'token_types': 2,
  'norm': 'layernorm',
  'norm_epsilon': 1e-12,
  'norm_placement': 'post',
  'embedding_norm': True,
  'bias': True,
  'readout': 'transform',
  'heads': ('pooler',),
}
SHAPES = {'gpt2': GPT2, 'llama': LLAMA}
V = tokenizer.FIRST_PIECE


def build(config, static='causal', **changes):
  """The model for an objective of the attention `static`."""
  for name, value in changes.items():
    config.model[name] = value
  resolved = config_lib.resolve(config)
  objective = dataclasses.replace(objectives.make(resolved), attention=static)
  return models.make(resolved, objective)


def batch_of(segments, length):
  """A batch with one row a list of segment lengths, random tokens."""
  rng = np.random.default_rng(0)
  rows = {'segment': [], 'position': []}
  for lengths in segments:
    segment, position = np.zeros((2, length), np.int32)
    start = 0
    for number, n in enumerate(lengths, 1):
      segment[start : start + n] = number
      position[start : start + n] = np.arange(n)
      start += n
    rows['segment'].append(segment)
    rows['position'].append(position)
  segment, position = (np.stack(rows[n]) for n in ('segment', 'position'))
  tokens = rng.integers(270, V, segment.shape).astype(np.int32)
  return types.Batch(
    tokens_BxL=jnp.asarray(tokens * (segment > 0)),
    targets_BxL=jnp.asarray(tokens),
    weights_BxL=jnp.asarray((segment > 0).astype(np.float32)),
    order_BxL=jnp.asarray(position),
    segment_BxL=jnp.asarray(segment),
    position_BxL=jnp.asarray(position),
  )


def run(model, params, batch, **kwargs):
  return model.logits(params, model.hidden(params, batch, **kwargs))
