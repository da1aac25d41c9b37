"""Transformers of one stack: decoders and encoders differ in attention only."""

import dataclasses

import jax
import jax.numpy as jnp

from lm import types
from lm.models import blocks, embeddings, heads, stack


def make(cfg: blocks.TransformerConfig) -> types.Model:
  """The pure functions of one stack, see `types.Model`."""
  return stack.make_model(_OneStack(cfg), cfg)


@dataclasses.dataclass(frozen=True)
class _OneStack:
  """Embeddings and a stack; parameters are arguments."""

  cfg: blocks.TransformerConfig

  @property
  def _stack(self) -> stack.Stack:
    return stack.Stack(self.cfg)

  def init(self, key: jax.Array) -> types.Params:
    cfg = self.cfg
    key_embeddings, key_stack, key_heads = jax.random.split(key, 3)
    trunk = {
      'embeddings': embeddings.init(cfg, key_embeddings),
      **self._stack.init(key_stack),
    }
    return {
      'trunk': trunk,
      'heads': heads.init(cfg, key_heads),
      'networks': {},
    }

  def hidden(
    self,
    params: types.Params,
    batch: types.Batch,
    *,
    key: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    if not train or self.cfg.dropout == 0:
      key = None
    trunk = params['trunk']
    x_BxLxD = self._embed(
      trunk,
      batch.tokens_BxL,
      batch.position_BxL,
      batch.type_BxL,
      # Layers fold in 0, ..., N - 1.
      key=None if key is None else jax.random.fold_in(key, self.cfg.N),
    )
    return self._stack.run(trunk, x_BxLxD, stack.side(batch), key=key)

  def logits(self, params: types.Params, hidden_BxLxD: jax.Array) -> jax.Array:
    trunk = params['trunk']
    return embeddings.logits(self.cfg, trunk['embeddings'], hidden_BxLxD)

  def start(
    self, params: types.Params, batch: types.Batch, length: int
  ) -> tuple[jax.Array, types.Cache]:
    trunk = params['trunk']
    x_BxLxD = self._embed(
      trunk, batch.tokens_BxL, batch.position_BxL, batch.type_BxL
    )
    hidden_BxLxD, kept = self._stack.start(
      trunk, x_BxLxD, stack.side(batch), length
    )
    length_B = jnp.sum(batch.segment_BxL != 0, axis=1, dtype=jnp.int32)
    return hidden_BxLxD, {'length': length_B, 'layers': kept}

  def extend(
    self, params: types.Params, cache: types.Cache, tokens_BxT: jax.Array
  ) -> tuple[jax.Array, types.Cache]:
    trunk, T = params['trunk'], tokens_BxT.shape[1]
    position_BxT = cache['length'][:, None] + jnp.arange(T)[None, :]
    x_BxTxD = self._embed(trunk, tokens_BxT, position_BxT)
    hidden_BxTxD, kept = self._stack.extend(
      trunk, x_BxTxD, position_BxT, cache['layers']
    )
    return hidden_BxTxD, {'length': cache['length'] + T, 'layers': kept}

  def _embed(self, trunk, *sides, key=None):
    return embeddings.embed(self.cfg, trunk['embeddings'], *sides, key=key)
