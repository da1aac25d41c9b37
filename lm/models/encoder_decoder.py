"""Encoder-decoders (Vaswani et al. 2017).

The encoder reads its side of a row in both directions. The decoder reads the
other side from left to right, and each of its layers attends to the encoder's
output for the segment with the same number. Both share the token embeddings.

T5 (Raffel et al. 2020) has relative positions, RMSNorm, no biases and unscaled
scores; version 1.0 has ReLU and a tied, scaled readout, version 1.1 a gated
GELU and an untied readout.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm import types
from lm.models import blocks, embeddings, heads, stack


def make(
  encoder: blocks.TransformerConfig, decoder: blocks.TransformerConfig
) -> types.Model:
  """The pure functions of two stacks, see `types.Model`.

  Args:
    encoder: may differ from the decoder in N, attention and implementation.
    decoder: its `cross` is set.
  """
  stacks = _TwoStacks(stack.Stack(encoder), stack.Stack(decoder))
  return stack.make_model(stacks, decoder)


@dataclasses.dataclass(frozen=True)
class _TwoStacks:
  """Embeddings, an encoder and a decoder; parameters are arguments."""

  encoder: stack.Stack
  decoder: stack.Stack

  def init(self, key: jax.Array) -> types.Params:
    cfg = self.decoder.cfg
    keys = jax.random.split(key, 4)
    return {
      'trunk': {
        'embeddings': embeddings.init(cfg, keys[0]),
        'encoder': self.encoder.init(keys[1]),
        'decoder': self.decoder.init(keys[2]),
      },
      'heads': heads.init(cfg, keys[3]),
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
    keys = [None] * 4
    if train and self.decoder.cfg.dropout > 0:
      keys = list(jax.random.split(key, 4))
    encoded = self._encode(params, batch, *keys[:2])
    x_BxLxD = self._embed(
      params, batch.tokens_BxL, batch.position_BxL, key=keys[2]
    )
    return self.decoder.run(
      params['trunk']['decoder'],
      x_BxLxD,
      stack.side(batch),
      encoded,
      key=keys[3],
    )

  def logits(self, params: types.Params, hidden_BxLxD: jax.Array) -> jax.Array:
    return embeddings.logits(
      self.decoder.cfg, params['trunk']['embeddings'], hidden_BxLxD
    )

  def start(
    self, params: types.Params, batch: types.Batch, length: int
  ) -> tuple[jax.Array, types.Cache]:
    encoded = self._encode(params, batch)
    x_BxLxD = self._embed(params, batch.tokens_BxL, batch.position_BxL)
    hidden_BxLxD, kept = self.decoder.start(
      params['trunk']['decoder'], x_BxLxD, stack.side(batch), length, encoded
    )
    real_BxM = batch.encoder_segment_BxM > 0
    cache = {
      'length': jnp.sum(batch.segment_BxL != 0, axis=1, dtype=jnp.int32),
      # A row of padding alone, which fills up a batch, sees padding.
      'encoder_mask': real_BxM | ~jnp.any(real_BxM, axis=1, keepdims=True),
      'layers': kept,
    }
    return hidden_BxLxD, cache

  def extend(
    self, params: types.Params, cache: types.Cache, tokens_BxT: jax.Array
  ) -> tuple[jax.Array, types.Cache]:
    T = tokens_BxT.shape[1]
    position_BxT = cache['length'][:, None] + jnp.arange(T)[None, :]
    x_BxTxD = self._embed(params, tokens_BxT, position_BxT)
    hidden_BxTxD, kept = self.decoder.extend(
      params['trunk']['decoder'],
      x_BxTxD,
      position_BxT,
      cache['layers'],
      cache['encoder_mask'],
    )
    return hidden_BxTxD, {
      'length': cache['length'] + T,
      'encoder_mask': cache['encoder_mask'],
      'layers': kept,
    }

  def _encode(self, params, batch, key_embeddings=None, key=None):
    if batch.encoder_tokens_BxM is None:
      raise ValueError('an encoder-decoder needs the encoder side of a batch')
    x_BxMxD = self._embed(
      params,
      batch.encoder_tokens_BxM,
      batch.encoder_position_BxM,
      key=key_embeddings,
    )
    side = stack.Side(
      order_BxL=jnp.zeros_like(batch.encoder_position_BxM),
      segment_BxL=batch.encoder_segment_BxM,
      position_BxL=batch.encoder_position_BxM,
    )
    hidden_BxMxD = self.encoder.run(
      params['trunk']['encoder'], x_BxMxD, side, key=key
    )
    return stack.Encoded(hidden_BxMxD, batch.encoder_segment_BxM)

  def _embed(self, params, *side, key=None):
    return embeddings.embed(
      self.decoder.cfg, params['trunk']['embeddings'], *side, key=key
    )
