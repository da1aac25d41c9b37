"""Embeddings of tokens, positions and types, and the readout to logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import field, types
from lm.models import blocks, dot_general
from lm.runtime import sharding

# Parameter path -> PartitionSpec, see `types.ParameterRules`.
SHARDING = (
  (r'/token/embedding$', P('tensor', 'fsdp')),
  (r'/(position|type)/embedding$', P(None, 'fsdp')),
  (r'/transform/kernel$', P('fsdp', None)),
  (r'/readout_kernel$', P('fsdp', 'tensor')),
  (r'/readout_bias$', P('tensor')),
  (r'norm/(scale|bias)$|/transform/bias$', P()),
)

FIELDS = field.section(
  token_types=field.Field(
    0, 'Number of sentence types with an embedding; BERT has 2.', least=0
  ),
  embedding_norm=field.Field(False, 'Normalizes the sum of the embeddings.'),
  tie_embeddings=field.Field(
    True, 'The readout is the transposed token embedding.'
  ),
  scale_embeddings=field.Field(
    False, 'Multiplies token embeddings by the square root of the width.'
  ),
  readout=field.Field(
    'linear',
    "The readout: linear, or BERT's (transform): a layer, a norm, and a bias "
    'on the logits.',
    choices=blocks.READOUTS,
  ),
  scale_readout=field.Field(
    False,
    'Divides hidden states by the square root of the width before the '
    'readout, as T5 1.0, whose embeddings start as large.',
  ),
)


class Embeddings(nn.Module):
  """Token, learned position and type embeddings, and the readout to logits."""

  cfg: blocks.TransformerConfig

  def setup(self):
    cfg = self.cfg
    # Small, since a tied readout initially gives the token that is read the
    # largest logit (Radford et al. 2018, section 4.1). T5, which scales the
    # readout, starts with 1.
    token_init = nn.initializers.normal(1.0 if cfg.scale_readout else 0.02)
    init = nn.initializers.normal(0.02)
    self.token = nn.Embed(
      cfg.V, cfg.D, dtype=cfg.dtype, embedding_init=token_init
    )
    if cfg.position == 'learned':
      self.position = nn.Embed(
        cfg.L, cfg.D, dtype=cfg.dtype, embedding_init=init
      )
    if cfg.token_types:
      self.type = nn.Embed(
        cfg.token_types, cfg.D, dtype=cfg.dtype, embedding_init=init
      )
    if cfg.embedding_norm:
      self.norm = blocks.norm(cfg)
    if not cfg.tie_embeddings:
      self.readout_kernel = self.param(
        'readout_kernel', blocks.kernel_init(), (cfg.D, cfg.V)
      )
    if cfg.readout == 'transform':
      self.transform = blocks.dense(cfg, cfg.D)
      self.transform_norm = blocks.norm(cfg)
      self.readout_bias = self.param(
        'readout_bias', nn.initializers.zeros, (cfg.V,)
      )

  def __call__(
    self,
    tokens_BxL: jax.Array,
    position_BxL: jax.Array,
    type_BxL: jax.Array | None,
  ) -> jax.Array:
    cfg = self.cfg
    x_BxLxD = self.token(tokens_BxL)
    if cfg.scale_embeddings:  # Vaswani et al. 2017, section 3.4
      x_BxLxD = x_BxLxD * cfg.D**0.5
    if cfg.position == 'learned':
      x_BxLxD = x_BxLxD + self.position(position_BxL)
    if cfg.token_types:  # Devlin et al. 2019, section 3
      types = jnp.zeros_like(tokens_BxL) if type_BxL is None else type_BxL
      x_BxLxD = x_BxLxD + self.type(types)
    return self.norm(x_BxLxD) if cfg.embedding_norm else x_BxLxD

  def readout(self, hidden_BxLxD: jax.Array) -> jax.Array:
    """Logits; BERT's readout adds a layer before and a bias after."""
    cfg = self.cfg
    transforms = cfg.readout == 'transform'
    if transforms:
      activation, _ = blocks.ACTIVATIONS[cfg.activation]
      hidden_BxLxD = activation(self.transform(hidden_BxLxD))
      hidden_BxLxD = self.transform_norm(hidden_BxLxD)
    if cfg.scale_readout:
      hidden_BxLxD = hidden_BxLxD * cfg.D**-0.5
    if cfg.tie_embeddings:
      kernel_DxV = self.token.embedding.T
    else:
      kernel_DxV = self.readout_kernel
    logits_BxLxV = dot_general.project(
      hidden_BxLxD.astype(cfg.dtype), kernel_DxV.astype(cfg.dtype)
    )
    if not transforms:
      return logits_BxLxV
    return logits_BxLxV + self.readout_bias.astype(cfg.dtype)


def init(cfg: blocks.TransformerConfig, key: jax.Array) -> types.Params:
  """Parameters of `Embeddings`."""
  ids_1x1 = jnp.zeros((1, 1), jnp.int32)

  def both(module):
    return module.readout(module(ids_1x1, ids_1x1, ids_1x1))

  return nn.init(both, Embeddings(cfg))(key)['params']


def embed(
  cfg: blocks.TransformerConfig,
  params: types.Params,
  tokens_BxL: jax.Array,
  position_BxL: jax.Array,
  type_BxL: jax.Array | None = None,
  *,
  key: jax.Array | None = None,
) -> jax.Array:
  """Input of the first layer; `key` draws its dropout mask, None: no mask."""
  x_BxLxD = Embeddings(cfg).apply(
    {'params': sharding.gather(params, SHARDING, 'fsdp', cfg.mesh)},
    tokens_BxL,
    position_BxL,
    type_BxL,
  )
  dropout = nn.Dropout(cfg.dropout, deterministic=key is None)
  return dropout.apply(
    {}, x_BxLxD, rngs={} if key is None else {'dropout': key}
  )


def logits(
  cfg: blocks.TransformerConfig, params: types.Params, hidden_BxLxD: jax.Array
) -> jax.Array:
  """Logits of hidden states, [B, L, V]."""
  return Embeddings(cfg).apply(
    {'params': params}, hidden_BxLxD, method=Embeddings.readout
  )
