"""Tiny models of two stacks in the shapes of releases, and batches for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import base
from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing
from lm.objectives import layout

V = 528
M, L = 20, 16
CAPACITY = types.Size(tokens=L, encoder_tokens=M)
T5 = {
  'position': 'relative',
  'activation': 'relu',
  'scale_attention': False,
  'scale_readout': True,
  'head_size': 16,
}
BART = {
  'position': 'learned',
  'norm': 'layernorm',
  'norm_placement': 'post',
  'embedding_norm': True,
  'activation': 'gelu',
  'bias': True,
}
SHAPES = {'default': {'num_kv_heads': 2}, 't5': T5, 'bart': BART}


def build(**changes):
  """A tiny model, compiled: operation by operation, all would be slow."""
  config = base.get_config()
  config.data.tokenizer = 'bytes'
  config.data.vocab_size = V
  config.objective.name = 'prefix'
  config.model.architecture = 'encoder_decoder'
  config.model.update({'num_layers': 2, 'num_encoder_layers': 1})
  config.model.update({'width': 32, 'num_heads': 4, 'mlp_width': 64})
  config.model.update(changes)
  resolved = config_lib.resolve(config)
  objective = dataclasses.replace(objectives.make(resolved), capacity=CAPACITY)
  model = models.make(resolved, objective)
  return dataclasses.replace(
    model,
    hidden=jax.jit(model.hidden, static_argnames='train'),
    logits=jax.jit(model.logits),
    start=jax.jit(model.start, static_argnums=2),
    extend=jax.jit(model.extend),
  )


def random_params(model, seed=0):
  """Every parameter random, so that none is hidden by its initial value."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.15, x.shape), jnp.float32),
    jax.eval_shape(model.init, jax.random.PRNGKey(0)),
  )


@functools.cache
def built(shape):
  """The model of a shape and its parameters; compiled once for all tests."""
  model = build(**SHAPES[shape])
  return model, random_params(model)


def pairs(*lengths, seed=0):
  """Examples of random inputs and targets, of these numbers of tokens."""
  rng = np.random.default_rng(seed)
  return [
    layout.encoder_decoder(rng.integers(270, V, n), rng.integers(270, V, m))
    for n, m in lengths
  ]


def batch_of(*rows):
  batch = packing.stack([packing.pack(row, CAPACITY) for row in rows])
  return jax.tree.map(jnp.asarray, batch)
