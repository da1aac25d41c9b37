"""Pre-norm Transformer decoders, GPT-2 and Llama shapes included.

One block, `x + attention(norm(x))`, then `x + mlp(norm(x))`, and one stack of
them. GPT-2 (Radford et al. 2019) is learned positions, LayerNorm, GELU, biases
and a tied readout; Llama (Touvron et al. 2023) is rotary positions, RMSNorm,
SwiGLU, grouped queries and no bias.

Axes besides the project's legend: `G` key-value heads, `T` new positions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import types
from lm.models import attention as attention_lib, base

# activation -> (function, whether the MLP multiplies by a gate).
ACTIVATIONS = {
  'gelu': (functools.partial(jax.nn.gelu, approximate=False), False),
  'gelu_tanh': (functools.partial(jax.nn.gelu, approximate=True), False),
  'relu': (jax.nn.relu, False),
  'silu': (jax.nn.silu, False),
  'geglu': (functools.partial(jax.nn.gelu, approximate=False), True),
  'swiglu': (jax.nn.silu, True),
}
NORMS = ('layernorm', 'rmsnorm')
POSITIONS = ('learned', 'rotary')
REMATS = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a stack; the fields are those of `config.model`.

  V: vocabulary; L: longest context; N: layers; D: width; H: query heads;
  G: key-value heads; F: width inside the MLP. attention, implementation, mesh:
  see `attention.attend`.
  """

  V: int
  L: int
  N: int
  D: int
  H: int
  G: int
  F: int
  activation: str
  position: str
  norm: str
  norm_epsilon: float
  rotary_base: float
  bias: bool
  tie_embeddings: bool
  scale_embeddings: bool
  dropout: float
  dtype: Any
  scan_layers: bool
  remat: str
  attention: str
  implementation: str
  mesh: jax.sharding.Mesh | None

  @property
  def K(self) -> int:
    """Size of a head."""
    return self.D // self.H


def _norm(cfg: TransformerConfig, name: str) -> nn.Module:
  if cfg.norm == 'rmsnorm':
    return nn.RMSNorm(epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name=name)
  return nn.LayerNorm(
    epsilon=cfg.norm_epsilon, use_bias=cfg.bias, dtype=cfg.dtype, name=name
  )


def _kernel_init(scale: float = 1.0):
  return nn.initializers.variance_scaling(scale, 'fan_in', 'normal')


class Embeddings(nn.Module):
  """Token (and learned position) embeddings and the readout to logits."""

  cfg: TransformerConfig

  def setup(self):
    cfg = self.cfg
    # Small also for the readout's sake, where it is tied: at first a token's
    # own logit is the largest (Radford et al. 2018, section 4.1).
    init = nn.initializers.normal(0.02)
    self.token = nn.Embed(cfg.V, cfg.D, dtype=cfg.dtype, embedding_init=init)
    if cfg.position == 'learned':
      self.position = nn.Embed(
        cfg.L, cfg.D, dtype=cfg.dtype, embedding_init=init
      )
    if not cfg.tie_embeddings:
      self.readout_kernel = self.param(
        'readout_kernel', _kernel_init(), (cfg.D, cfg.V)
      )

  def __call__(
    self, tokens_BxL: jax.Array, position_BxL: jax.Array
  ) -> jax.Array:
    x_BxLxD = self.token(tokens_BxL)
    if self.cfg.scale_embeddings:  # Vaswani et al. 2017, section 3.4
      x_BxLxD = x_BxLxD * self.cfg.D**0.5
    if self.cfg.position == 'learned':
      x_BxLxD = x_BxLxD + self.position(position_BxL)
    return x_BxLxD

  def readout(self, hidden_BxLxD: jax.Array) -> jax.Array:
    if self.cfg.tie_embeddings:
      return self.token.attend(hidden_BxLxD)
    kernel_DxV = self.readout_kernel.astype(self.cfg.dtype)
    return jnp.einsum('bld,dv->blv', hidden_BxLxD, kernel_DxV)


class Attention(nn.Module):
  """Multi-head attention with grouped keys and values, and rotary positions."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, position_BxL: jax.Array, attend: Callable
  ) -> tuple[jax.Array, Any]:
    cfg = self.cfg
    project = functools.partial(
      nn.DenseGeneral,
      use_bias=cfg.bias,
      dtype=cfg.dtype,
      kernel_init=_kernel_init(),
    )
    q_BxLxHxK = project((cfg.H, cfg.K), name='query')(x_BxLxD)
    k_BxLxGxK = project((cfg.G, cfg.K), name='key')(x_BxLxD)
    v_BxLxGxK = project((cfg.G, cfg.K), name='value')(x_BxLxD)
    if cfg.position == 'rotary':
      q_BxLxHxK = attention_lib.rotate(q_BxLxHxK, position_BxL, cfg.rotary_base)
      k_BxLxGxK = attention_lib.rotate(k_BxLxGxK, position_BxL, cfg.rotary_base)
    heads_BxLxHxK, kept = attend(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)
    # Residual branches start small: 2N of them add up (Radford et al. 2019).
    out = project(
      cfg.D,
      axis=(-2, -1),
      kernel_init=_kernel_init(1 / (2 * cfg.N)),
      name='out',
    )
    return out(heads_BxLxHxK), kept


class FeedForward(nn.Module):
  """Position-wise MLP: up, activation (times a gate), down."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    cfg = self.cfg
    dense = functools.partial(
      nn.Dense, use_bias=cfg.bias, dtype=cfg.dtype, kernel_init=_kernel_init()
    )
    activation, gated = ACTIVATIONS[cfg.activation]
    if gated:  # Shazeer 2020, section 2
      h_BxLxF = activation(dense(cfg.F, name='gate')(x_BxLxD))
      h_BxLxF = h_BxLxF * dense(cfg.F, name='up')(x_BxLxD)
    else:
      h_BxLxF = activation(dense(cfg.F, name='up')(x_BxLxD))
    down = dense(cfg.D, kernel_init=_kernel_init(1 / (2 * cfg.N)), name='down')
    return down(h_BxLxF)


class Block(nn.Module):
  """One pre-norm layer.

  `attend(q, k, v) -> (heads, kept)` is given by the caller; what it keeps, a
  cache or nothing, is returned beside the output.
  """

  cfg: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    position_BxL: jax.Array,
    attend: Callable,
    *,
    deterministic: bool,
  ) -> tuple[jax.Array, Any]:
    cfg = self.cfg
    dropout = functools.partial(
      nn.Dropout(cfg.dropout), deterministic=deterministic
    )
    mixed_BxLxD, kept = Attention(cfg, name='attention')(
      _norm(cfg, 'attention_norm')(x_BxLxD), position_BxL, attend
    )
    x_BxLxD = x_BxLxD + dropout(mixed_BxLxD)
    h_BxLxD = FeedForward(cfg, name='mlp')(_norm(cfg, 'mlp_norm')(x_BxLxD))
    return x_BxLxD + dropout(h_BxLxD), kept


def make(cfg: TransformerConfig) -> base.Model:
  """The pure functions of a stack, see `base.Model`."""
  stack = _Stack(cfg)
  return base.Model(
    init=stack.init,
    hidden=stack.hidden,
    logits=stack.logits,
    start=stack.start,
    extend=stack.extend,
  )


@dataclasses.dataclass(frozen=True)
class _Stack:
  """Embeddings, N blocks, a last norm; parameters are always given."""

  cfg: TransformerConfig

  def init(self, key: jax.Array) -> base.Params:
    cfg = self.cfg
    x_1x1xD = jnp.zeros((1, 1, cfg.D), cfg.dtype)
    ids_1x1 = jnp.zeros((1, 1), jnp.int32)

    def init_embeddings(module):
      return module.readout(module(ids_1x1, ids_1x1))

    def init_block(key):
      return Block(cfg).init(
        key, x_1x1xD, ids_1x1, _attend_nothing, deterministic=True
      )

    key_embeddings, key_layers, key_norm = jax.random.split(key, 3)
    trunk = {
      'embeddings': nn.init(init_embeddings, Embeddings(cfg))(key_embeddings),
      'layers': jax.vmap(init_block)(jax.random.split(key_layers, cfg.N)),
      'final_norm': _norm(cfg, None).init(key_norm, x_1x1xD),
    }
    trunk = {name: tree['params'] for name, tree in trunk.items()}
    return {'trunk': trunk, 'heads': {}, 'networks': {}}

  def hidden(
    self,
    params: base.Params,
    batch: types.Batch,
    *,
    key: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    cfg = self.cfg
    deterministic = not train or cfg.dropout == 0
    attend = functools.partial(_attend_rows, cfg, batch)

    def rngs(index):
      if deterministic:
        return {}
      return {'dropout': jax.random.fold_in(key, index)}

    def layer(x_BxLxD, layer_params, index):
      return Block(cfg).apply(
        {'params': layer_params},
        x_BxLxD,
        batch.position_BxL,
        attend,
        deterministic=deterministic,
        rngs=rngs(index),
      )[0]

    x_BxLxD = self._embed(params, batch.tokens_BxL, batch.position_BxL)
    dropout = nn.Dropout(cfg.dropout, deterministic=deterministic)
    x_BxLxD = dropout.apply({}, x_BxLxD, rngs=rngs(cfg.N))
    x_BxLxD = _run_layers(cfg, layer, params['trunk']['layers'], x_BxLxD)
    return self._normalize(params, x_BxLxD)

  def logits(self, params: base.Params, hidden_BxLxD: jax.Array) -> jax.Array:
    return Embeddings(self.cfg).apply(
      {'params': params['trunk']['embeddings']},
      hidden_BxLxD,
      method=Embeddings.readout,
    )

  def start(
    self, params: base.Params, batch: types.Batch, length: int
  ) -> tuple[jax.Array, base.Cache]:
    padding = ((0, 0), (0, length - batch.tokens_BxL.shape[1]), (0, 0), (0, 0))

    def attend(q, k, v):
      heads, _ = _attend_rows(self.cfg, batch, q, k, v)
      return heads, (jnp.pad(k, padding), jnp.pad(v, padding))

    hidden_BxLxD, kept = self._decode(
      params, batch.tokens_BxL, batch.position_BxL, [attend] * self.cfg.N
    )
    length_B = jnp.sum(batch.segment_BxL != 0, axis=1, dtype=jnp.int32)
    return hidden_BxLxD, {'length': length_B, 'layers': kept}

  def extend(
    self, params: base.Params, cache: base.Cache, tokens_BxT: jax.Array
  ) -> tuple[jax.Array, base.Cache]:
    B, T = tokens_BxT.shape
    position_BxT = cache['length'][:, None] + jnp.arange(T)[None, :]
    row_Bx1 = jnp.arange(B)[:, None]

    def attend_to(past):
      def attend(q, k, v):
        k = past[0].at[row_Bx1, position_BxT].set(k, mode='drop')
        v = past[1].at[row_Bx1, position_BxT].set(v, mode='drop')
        return attention_lib.attend_cached(q, k, v, position_BxT), (k, v)

      return attend

    hidden_BxTxD, kept = self._decode(
      params,
      tokens_BxT,
      position_BxT,
      [attend_to(past) for past in cache['layers']],
    )
    return hidden_BxTxD, {'length': cache['length'] + T, 'layers': kept}

  def _decode(self, params, tokens_BxT, position_BxT, attends):
    """Runs the layers unrolled, each with an `attend` of its own."""
    x_BxTxD = self._embed(params, tokens_BxT, position_BxT)
    layers = unstack(params['trunk']['layers'], self.cfg.N)
    kept = []
    for layer_params, attend in zip(layers, attends, strict=True):
      x_BxTxD, layer_kept = Block(self.cfg).apply(
        {'params': layer_params},
        x_BxTxD,
        position_BxT,
        attend,
        deterministic=True,
      )
      kept.append(layer_kept)
    return self._normalize(params, x_BxTxD), kept

  def _embed(self, params, tokens_BxL, position_BxL):
    variables = {'params': params['trunk']['embeddings']}
    return Embeddings(self.cfg).apply(variables, tokens_BxL, position_BxL)

  def _normalize(self, params, x_BxLxD):
    variables = {'params': params['trunk']['final_norm']}
    return _norm(self.cfg, None).apply(variables, x_BxLxD)


def _attend_rows(cfg: TransformerConfig, batch: types.Batch, q, k, v):
  heads = attention_lib.attend(
    q,
    k,
    v,
    attention=cfg.attention,
    order_BxL=batch.order_BxL,
    segment_BxL=batch.segment_BxL,
    implementation=cfg.implementation,
    mesh=cfg.mesh,
  )
  return heads, None


def _attend_nothing(q, k, v):
  """Stands in for attention while parameters are made."""
  del k, v
  return q, None


def _run_layers(cfg, layer, stacked, x_BxLxD):
  """Applies N layers in turn, unrolled or as a scan over the stack."""
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

  Left to itself, each slice's gradient is padded to the whole stack and added.
  """
  leaves, structure = jax.tree.flatten(stacked)
  return [structure.unflatten([x[i] for x in leaves]) for i in range(count)]


def _unstack_forward(stacked, count):
  return unstack(stacked, count), None


def _unstack_backward(count, _, gradients):
  del count
  return (jax.tree.map(lambda *slices: jnp.stack(slices), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)
