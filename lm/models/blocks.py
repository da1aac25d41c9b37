"""The layers of a Transformer, and their shape.

Attention, cross-attention and the MLP are pre-norm, `x + attention(norm(x))`,
or post-norm, `norm(x + attention(x))`, as in BERT.

Axes besides the project's legend: `G` key-value heads, `M` keys.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from lm import field
from lm.models import attention as attention_lib, dot_general

# activation -> (function, whether the MLP multiplies by a gate).
ACTIVATIONS = {
  'gelu': (functools.partial(jax.nn.gelu, approximate=False), False),
  'gelu_tanh': (functools.partial(jax.nn.gelu, approximate=True), False),
  'relu': (jax.nn.relu, False),
  'silu': (jax.nn.silu, False),
  'geglu': (functools.partial(jax.nn.gelu, approximate=False), True),
  'geglu_tanh': (functools.partial(jax.nn.gelu, approximate=True), True),
  'swiglu': (jax.nn.silu, True),
}
NORMS = ('layernorm', 'rmsnorm')
NORM_PLACEMENTS = ('pre', 'post')
POSITIONS = ('learned', 'rotary', 'relative')
READOUTS = ('linear', 'transform')

FIELDS = field.section(
  activation=field.Field(
    'swiglu',
    'Activation of the MLP: gelu_tanh is GPT-2, swiglu Llama, geglu_tanh T5 '
    '1.1.',
    choices=tuple(ACTIVATIONS),
  ),
  position=field.Field(
    'rotary',
    'Positions: turned queries and keys, embeddings, or a bias on the scores, '
    'one a stack (relative, as T5).',
    choices=POSITIONS,
  ),
  rotary_base=field.Field(
    10_000.0,
    'Base of the rotary wavelengths.',
    least=1,
    read_with={'position': ('rotary',)},
  ),
  norm=field.Field('rmsnorm', 'Normalization of layers.', choices=NORMS),
  norm_epsilon=field.Field(1e-5, 'Added to the variance in norms.', least=0),
  norm_placement=field.Field(
    'pre',
    'Norms before attention and the MLP, or after them, as BERT.',
    choices=NORM_PLACEMENTS,
  ),
  scale_attention=field.Field(
    True,
    'Divides scores by the square root of the head size; T5 does not.',
  ),
  bias=field.Field(False, 'Biases in layers and norms.'),
  dropout=field.Field(
    0.0,
    'Dropout of embeddings and of each residual branch.',
    least=0,
    most=0.99,
  ),
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a stack; fields not listed here are those of `config.model`.

  V: size of the vocabulary.
  L: number of positions with a learned embedding.
  N: number of layers.
  D: width.
  H: number of query heads.
  G: number of key-value heads.
  K: head size.
  F: width of the MLP.
  attention, implementation, mesh: see `attention.attend`.
  cross: whether each layer attends to an encoder, too.
  """

  V: int
  L: int
  N: int
  D: int
  H: int
  G: int
  K: int
  F: int
  activation: str
  position: str
  token_types: int
  norm: str
  norm_epsilon: float
  norm_placement: str
  embedding_norm: bool
  rotary_base: float
  scale_attention: bool
  bias: bool
  tie_embeddings: bool
  scale_embeddings: bool
  readout: str
  scale_readout: bool
  heads: tuple[str, ...]
  dropout: float
  dtype: Any
  scan_layers: bool
  remat: str
  attention: str
  implementation: str
  mesh: jax.sharding.Mesh | None
  cross: bool = False

  @property
  def branch_scale(self) -> float:
    """Initial variance of a residual branch's last kernel, over that of others.

    Branches that are not normed start small, since those of all layers add up
    (Radford et al. 2019, section 2.3).
    """
    if self.norm_placement == 'post':
      return 1.0
    return 1 / ((3 if self.cross else 2) * self.N)


def norm(cfg: TransformerConfig, name: str | None = None) -> nn.Module:
  """The norm that `cfg.norm` names, over D."""
  if cfg.norm == 'rmsnorm':
    return nn.RMSNorm(epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name=name)
  return nn.LayerNorm(
    epsilon=cfg.norm_epsilon, use_bias=cfg.bias, dtype=cfg.dtype, name=name
  )


def kernel_init(scale: float = 1.0):
  """Normal initializer with variance `scale` / number of inputs."""
  return nn.initializers.variance_scaling(scale, 'fan_in', 'normal')


def dense(
  cfg: TransformerConfig,
  features: int | tuple[int, ...],
  *,
  scale: float = 1.0,
  **options: Any,
) -> nn.Module:
  """A linear layer, whose gradient is that of `dot_general.py`.

  Args:
    scale: see `kernel_init`.
    options: arguments of `nn.DenseGeneral`.
  """
  return nn.DenseGeneral(
    features,
    dtype=cfg.dtype,
    kernel_init=kernel_init(scale),
    dot_general=dot_general.dot_general,
    **options,
  )


# (q, k, v) -> (heads, kept), where `kept` is a cache or None.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Attends(NamedTuple):
  """A layer's self-attention, and its cross-attention if it has an encoder."""

  self_attend: Attend
  cross_attend: Attend | None = None


class Attention(nn.Module):
  """Multi-head attention with grouped keys and values.

  rotary: whether rotary embeddings apply if the stack has them; positions of
    two different sequences have no distance.
  """

  cfg: TransformerConfig
  rotary: bool = True

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    source_BxMxD: jax.Array,
    position_BxL: jax.Array,
    attend: Attend,
  ) -> tuple[jax.Array, Any]:
    cfg = self.cfg
    project = functools.partial(dense, cfg, use_bias=cfg.bias)
    # Unscaled scores initially have the variance of scaled ones (Raffel et al.
    # 2020).
    query_scale = 1 if cfg.scale_attention else 1 / cfg.K
    q_BxLxHxK = project((cfg.H, cfg.K), scale=query_scale, name='query')(
      x_BxLxD
    )
    k_BxMxGxK, v_BxMxGxK = (
      project((cfg.G, cfg.K), name=name)(source_BxMxD)
      for name in ('key', 'value')
    )
    if self.rotary and cfg.position == 'rotary':
      q_BxLxHxK = attention_lib.rotate(q_BxLxHxK, position_BxL, cfg.rotary_base)
      k_BxMxGxK = attention_lib.rotate(k_BxMxGxK, position_BxL, cfg.rotary_base)
    if not cfg.scale_attention:
      q_BxLxHxK = q_BxLxHxK * cfg.K**0.5  # undoes the scaling of all kernels
    heads_BxLxHxK, kept = attend(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK)
    out = project(cfg.D, axis=(-2, -1), scale=cfg.branch_scale, name='out')
    return out(heads_BxLxHxK), kept


class FeedForward(nn.Module):
  """Position-wise MLP: up, activation (times a gate), down."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    cfg = self.cfg
    project = functools.partial(dense, cfg, use_bias=cfg.bias)
    activation, gated = ACTIVATIONS[cfg.activation]
    if gated:  # Shazeer 2020, section 2
      h_BxLxF = activation(project(cfg.F, name='gate')(x_BxLxD))
      h_BxLxF = h_BxLxF * project(cfg.F, name='up')(x_BxLxD)
    else:
      h_BxLxF = activation(project(cfg.F, name='up')(x_BxLxD))
    down = project(cfg.D, scale=cfg.branch_scale, name='down')
    return down(h_BxLxF)


class Block(nn.Module):
  """One layer; returns its output and what both parts of `attends` kept."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    position_BxL: jax.Array,
    attends: Attends,
    encoded_BxMxD: jax.Array | None = None,
    *,
    deterministic: bool,
  ) -> tuple[jax.Array, tuple[Any, Any]]:
    cfg = self.cfg
    dropout = functools.partial(
      nn.Dropout(cfg.dropout), deterministic=deterministic
    )
    pre = cfg.norm_placement == 'pre'

    def before(name, x_BxLxD):
      return norm(cfg, name)(x_BxLxD) if pre else x_BxLxD

    def after(name, x_BxLxD):
      return x_BxLxD if pre else norm(cfg, name)(x_BxLxD)

    y_BxLxD = before('attention_norm', x_BxLxD)
    mixed_BxLxD, kept = Attention(cfg, name='attention')(
      y_BxLxD, y_BxLxD, position_BxL, attends.self_attend
    )
    x_BxLxD = after('attention_norm', x_BxLxD + dropout(mixed_BxLxD))
    cross_kept = None
    if cfg.cross:
      read_BxLxD, cross_kept = Attention(
        cfg, rotary=False, name='cross_attention'
      )(
        before('cross_attention_norm', x_BxLxD),
        encoded_BxMxD,
        position_BxL,
        attends.cross_attend,
      )
      x_BxLxD = after('cross_attention_norm', x_BxLxD + dropout(read_BxLxD))
    h_BxLxD = FeedForward(cfg, name='mlp')(before('mlp_norm', x_BxLxD))
    x_BxLxD = after('mlp_norm', x_BxLxD + dropout(h_BxLxD))
    return x_BxLxD, (kept, cross_kept)
