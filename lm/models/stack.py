"""A stack of layers and the final norm, on whole rows or with a cache.

Axes besides the project's legend: `G` key-value heads, `T` new positions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import field, types
from lm.models import (
  attention as attention_lib,
  blocks,
  heads,
  readout,
  relative_bias,
)

REMATS = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}

FIELDS = field.section(
  scan_layers=field.Field(
    None,
    'Runs the layers as a scan, which compiles faster.',
    kind=bool,
    none='on except on CPU, where a scan is slow',
    derive=lambda config: jax.default_backend() != 'cpu',
  ),
  remat=field.Field(
    'none',
    'What the backward pass computes again: nothing, all but matrix products '
    '(dots), or everything.',
    choices=tuple(REMATS),
  ),
)


class Side(NamedTuple):
  """One side of a batch, see `types.Batch`."""

  order_BxL: jax.Array
  segment_BxL: jax.Array
  position_BxL: jax.Array


def side(batch: types.Batch) -> Side:
  """The side of the decoder, or of the only stack."""
  return Side(batch.order_BxL, batch.segment_BxL, batch.position_BxL)


class Encoded(NamedTuple):
  """The encoder's output, which cross-attention reads."""

  hidden_BxMxD: jax.Array
  segment_BxM: jax.Array


@dataclasses.dataclass(frozen=True)
class Stack:
  """N layers; parameters are arguments.

  The parameters are {'layers'}, stacked along N, {'final_norm'} unless layers
  are post-norm, and {'relative'} if positions are relative.
  """

  cfg: blocks.TransformerConfig

  def init(self, key: jax.Array) -> types.Params:
    """Draws the parameters."""
    cfg = self.cfg
    x_1x1xD = jnp.zeros((1, 1, cfg.D), cfg.dtype)
    ids_1x1 = jnp.zeros((1, 1), jnp.int32)
    nothing = blocks.Attends(_attend_nothing, _attend_nothing)

    def init_block(key):
      return blocks.Block(cfg).init(
        key, x_1x1xD, ids_1x1, nothing, x_1x1xD, deterministic=True
      )

    layers = jax.vmap(init_block)(jax.random.split(key, cfg.N))
    params = {'layers': layers['params']}
    if cfg.norm_placement == 'pre':
      params['final_norm'] = blocks.norm(cfg).init(key, x_1x1xD)['params']
    if cfg.position == 'relative':
      table_ZxH = 0.02 * jax.random.normal(
        jax.random.fold_in(key, cfg.N), (relative_bias.BUCKETS, cfg.H)
      )
      params['relative'] = {'embedding': table_ZxH}
    return params

  def run(
    self,
    params: types.Params,
    x_BxLxD: jax.Array,
    rows: Side,
    encoded: Encoded | None = None,
    *,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states of whole rows; `key` draws dropout, None: no dropout."""
    cfg = self.cfg
    attends = self._attends(params, rows, encoded)

    def layer(x_BxLxD, layer_params, index):
      rngs = {} if key is None else {'dropout': jax.random.fold_in(key, index)}
      return blocks.Block(cfg).apply(
        {'params': layer_params},
        x_BxLxD,
        rows.position_BxL,
        attends,
        None if encoded is None else encoded.hidden_BxMxD,
        deterministic=key is None,
        rngs=rngs,
      )[0]

    x_BxLxD = _run_layers(cfg, layer, params['layers'], x_BxLxD)
    return self._normalize(params, x_BxLxD)

  def start(
    self,
    params: types.Params,
    x_BxLxD: jax.Array,
    rows: Side,
    length: int,
    encoded: Encoded | None = None,
  ) -> tuple[jax.Array, list[Any]]:
    """Hidden states, and each layer's cache of keys and values.

    Returns:
      [B, L, D], and for each layer ((keys, values) [B, length, G, K], those of
      the encoder's positions [B, M, G, K], or None without an encoder).
    """
    attends = self._attends(params, rows, encoded)
    padding = ((0, 0), (0, length - x_BxLxD.shape[1]), (0, 0), (0, 0))

    def self_attend(q, k, v):
      heads, _ = attends.self_attend(q, k, v)
      return heads, (jnp.pad(k, padding), jnp.pad(v, padding))

    def cross_attend(q, k, v):
      heads, _ = attends.cross_attend(q, k, v)
      return heads, (k, v)

    return self._decode(
      params,
      x_BxLxD,
      rows.position_BxL,
      [blocks.Attends(self_attend, cross_attend)] * self.cfg.N,
      None if encoded is None else encoded.hidden_BxMxD,
    )

  def extend(
    self,
    params: types.Params,
    x_BxTxD: jax.Array,
    position_BxT: jax.Array,
    past: Sequence[Any],
    encoder_mask_BxM: jax.Array | None = None,
  ) -> tuple[jax.Array, list[Any]]:
    """Hidden states of new positions, and the extended cache.

    Args:
      past: the cache that `start` or `extend` returned.
      encoder_mask_BxM: bool, the encoder's positions that a row reads; None
        without an encoder.
    """
    bias_BxHxTxM = None
    if self.cfg.position == 'relative':
      bias_BxHxTxM = relative_bias.bias_at(
        params['relative']['embedding'],
        position_BxT,
        past[0][0][0].shape[1],
        bidirectional=self.cfg.attention != 'causal',
      )
    row_Bx1 = jnp.arange(len(position_BxT))[:, None]

    def attends(kept, cross_kept):
      def self_attend(q, k, v):
        k = kept[0].at[row_Bx1, position_BxT].set(k, mode='drop')
        v = kept[1].at[row_Bx1, position_BxT].set(v, mode='drop')
        heads = attention_lib.attend_cached(q, k, v, position_BxT, bias_BxHxTxM)
        return heads, (k, v)

      def cross_attend(q, k, v):
        del k, v  # computed from no position of the encoder
        mask_BxTxM = jnp.broadcast_to(
          encoder_mask_BxM[:, None],
          (*position_BxT.shape, encoder_mask_BxM.shape[1]),
        )
        heads = attention_lib.reference(q, *cross_kept, mask_BxTxM)
        return heads, cross_kept

      return blocks.Attends(self_attend, cross_attend)

    return self._decode(
      params,
      x_BxTxD,
      position_BxT,
      [attends(*kept) for kept in past],
      x_BxTxD[:, :0],
    )

  def _attends(self, params, rows: Side, encoded: Encoded | None):
    """Attention over whole rows, without a cache."""
    cfg = self.cfg
    bias_1xHxLxL = None
    if cfg.position == 'relative':
      length = rows.order_BxL.shape[1]
      bias_1xHxLxL = relative_bias.bias(
        params['relative']['embedding'],
        length,
        length,
        bidirectional=cfg.attention != 'causal',
      )

    def self_attend(q, k, v):
      heads = attention_lib.attend(
        q,
        k,
        v,
        attention=cfg.attention,
        order_BxL=rows.order_BxL,
        segment_BxL=rows.segment_BxL,
        implementation=cfg.implementation,
        mesh=cfg.mesh,
        bias_BxHxLxL=bias_1xHxLxL,
      )
      return heads, None

    def cross_attend(q, k, v):
      heads = attention_lib.cross_attend(
        q,
        k,
        v,
        query_segment_BxL=rows.segment_BxL,
        key_segment_BxM=encoded.segment_BxM,
        implementation=cfg.implementation,
      )
      return heads, None

    return blocks.Attends(self_attend, cross_attend)

  def _decode(self, params, x_BxTxD, position_BxT, attends, encoded_BxMxD):
    """Runs the layers unrolled, each with its own entry of `attends`."""
    layers = unstack(params['layers'], self.cfg.N)
    kept = []
    for layer_params, attend in zip(layers, attends, strict=True):
      x_BxTxD, layer_kept = blocks.Block(self.cfg).apply(
        {'params': layer_params},
        x_BxTxD,
        position_BxT,
        attend,
        encoded_BxMxD,
        deterministic=True,
      )
      kept.append(layer_kept)
    return self._normalize(params, x_BxTxD), kept

  def _normalize(self, params, x_BxLxD):
    if self.cfg.norm_placement == 'post':
      return x_BxLxD
    variables = {'params': params['final_norm']}
    return blocks.norm(self.cfg).apply(variables, x_BxLxD)


def _attend_nothing(q, k, v):
  """Replaces attention while parameters are drawn."""
  del k, v
  return q, None


def _run_layers(
  cfg: blocks.TransformerConfig, layer: Callable, stacked, x_BxLxD: jax.Array
) -> jax.Array:
  """Applies N layers in sequence, unrolled or as a scan over the stack."""
  if REMATS[cfg.remat] is not None:
    layer = jax.checkpoint(layer, policy=REMATS[cfg.remat])
  if not cfg.scan_layers:
    for index, params in enumerate(unstack(stacked, cfg.N)):
      x_BxLxD = layer(x_BxLxD, params, index)
    return x_BxLxD
  x_BxLxD, _ = jax.lax.scan(
    lambda x, xs: (layer(x, *xs), None), x_BxLxD, (stacked, jnp.arange(cfg.N))
  )
  return x_BxLxD


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(stacked: Any, count: int) -> list[Any]:
  """The trees along the leading axis; the gradient is one stack.

  JAX's gradient would pad each slice's to the whole stack and add them up.
  """
  leaves, structure = jax.tree.flatten(stacked)
  return [structure.unflatten([x[i] for x in leaves]) for i in range(count)]


def _unstack_forward(stacked, count):
  return unstack(stacked, count), None


def _unstack_backward(count, _, gradients):
  del count
  return (jax.tree.map(lambda *slices: jnp.stack(slices), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)


def make_model(stacks: Any, cfg: blocks.TransformerConfig) -> types.Model:
  """The pure functions of a Transformer.

  Args:
    stacks: has the methods init, hidden, logits, start and extend.
    cfg: the shape of what is read out.
  """
  return types.Model(
    init=stacks.init,
    hidden=stacks.hidden,
    logits=stacks.logits,
    token_log_probs=functools.partial(
      readout.token_log_probs, stacks.hidden, stacks.logits
    ),
    start=stacks.start,
    extend=stacks.extend,
    head=functools.partial(heads.apply, cfg) if cfg.heads else None,
  )
