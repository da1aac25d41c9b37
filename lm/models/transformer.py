"""The Transformer family: its shape, rules and costs, for all architectures.

GPT-2 (Radford et al. 2019) has learned positions, LayerNorm, GELU, biases and a
tied readout; Llama (Touvron et al. 2023) has rotary positions, RMSNorm, SwiGLU,
grouped queries and no biases; BERT (Devlin et al. 2019) has GPT-2's shape with
post-norm layers, a norm on the embeddings, token types, and a readout with a
layer of its own. For T5 (Raffel et al. 2020) see `encoder_decoder.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import errors, field, types
from lm.models import (
  attention as attention_lib,
  attention_kernels,
  blocks,
  embeddings,
  encoder_decoder,
  heads,
  one_stack,
  stack,
)
from lm.runtime import sharding

ARCHITECTURES = ('decoder', 'encoder', 'encoder_decoder')
DTYPES = ('float32', 'bfloat16')


def _num_encoder_layers(config) -> int:
  sides = config.model.architecture == 'encoder_decoder'
  return config.model.num_layers if sides else 0


def _head_size(config) -> int:
  model = config.model
  if model.width % model.num_heads:
    raise errors.UserError(
      f'model.width={model.width} is not divisible by model.num_heads='
      f'{model.num_heads}, so no head size fits; change one'
    )
  return model.width // model.num_heads


def _mlp_width(config) -> int:
  width = config.model.width
  if not blocks.ACTIVATIONS[config.model.activation][1]:
    return 4 * width
  return -(-8 * width // 3 // 64) * 64  # two matrices up: 2/3 of 4 x width


FIELDS = field.section(
  num_layers=field.Field(
    3, 'Layers of the decoder, or of the only stack.', least=1
  ),
  num_encoder_layers=field.Field(
    None,
    'Layers of the encoder of an encoder-decoder.',
    kind=int,
    least=0,
    none='num_layers, as T5',
    derive=_num_encoder_layers,
  ),
  width=field.Field(256, 'Width of hidden states.', least=1),
  num_heads=field.Field(4, 'Attention heads.', least=1),
  num_kv_heads=field.Field(
    None,
    'Heads of keys and values (grouped-query attention).',
    kind=int,
    least=1,
    none='num_heads',
    derive=lambda config: config.model.num_heads,
  ),
  head_size=field.Field(
    None,
    'Size of a head.',
    kind=int,
    least=1,
    none='width / num_heads',
    derive=_head_size,
  ),
  mlp_width=field.Field(
    None,
    'Width inside the MLP.',
    kind=int,
    least=1,
    none='4 x width; for gated activations 8/3 x width, as many parameters',
    derive=_mlp_width,
  ),
  dtype=field.Field(
    'float32',
    'Type of computation; parameters are float32.',
    choices=DTYPES,
  ),
  attention=field.Field(
    None,
    'What computes attention. Anywhere: reference, blocks (of queries), xla. '
    'GPU: cudnn (causal, bfloat16, with data.cross_document_attention), '
    'pallas_gpu. TPU: splash. The last two need lengths that are multiples '
    'of 128.',
    kind=str,
    choices=attention_lib.IMPLEMENTATIONS,
    none='the first that can run of blocks (CPU), cudnn, pallas_gpu, xla '
    '(GPU), splash, xla (TPU)',
    may_change=True,  # Rounding alone differs; other devices may not run it.
  ),
  **blocks.FIELDS,
  **embeddings.FIELDS,
  **stack.FIELDS,
  **heads.FIELDS,
)

# Parameters of layers are stacked: their leading axis N is not split.
_RULES = types.ParameterRules(
  sharding=(
    (r'/(query|key|value)/kernel$', P(None, 'fsdp', 'tensor', None)),
    (r'/(query|key|value)/bias$', P(None, 'tensor', None)),
    (r'attention/out/kernel$', P(None, 'tensor', None, 'fsdp')),
    (r'/mlp/(gate|up)/kernel$', P(None, 'fsdp', 'tensor')),
    (r'/mlp/(gate|up)/bias$', P(None, 'tensor')),
    (r'/mlp/down/kernel$', P(None, 'tensor', 'fsdp')),
    (r'/relative/embedding$', P(None, 'tensor')),
    (r'/pooler/dense/kernel$', P('fsdp', None)),
    (r'/(out|down|dense)/bias$', P()),
    *embeddings.SHARDING,
  ),
  # Weight decay applies to matrices, but not to norms, biases, and tables of
  # positions and types.
  decay=(
    (r'norm/|bias$|/(position|type|relative)/', False),
    (r'/(kernel|embedding|readout_kernel)$', True),
  ),
  matrices=(
    (r'/layers/.*(norm/|/bias$)', (1, 0)),
    (r'/(query|key|value)/kernel$', (1, 1)),
    (r'attention/out/kernel$', (1, 2)),
    (r'/mlp/(gate|up|down)/kernel$', (1, 1)),
    (r'/embedding$|/readout_kernel$', (0, 1)),
    (r'/(transform|dense)/kernel$', (0, 1)),
    (r'norm/|bias$', (0, 0)),
  ),
  muon=(
    (r'norm/|bias$|/embedding$|/readout_kernel$', 'adamw'),
    (r'/kernel$', 'muon'),
  ),
)

# Field -> mesh axis whose size must divide the field's value.
_SPLITS = {
  'data.vocab_size': 'tensor',
  'model.num_heads': 'tensor',
  'model.num_kv_heads': 'tensor',
  'model.mlp_width': 'tensor',
  'model.width': 'fsdp',
}


def make(
  config, objective: types.Objective, mesh: jax.sharding.Mesh | None
) -> types.Model:
  """Builds the model; see `types.Family`."""
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  chosen = choose_attention(config, objective, device)
  if mesh is None and set(chosen.values()) & set(attention_kernels.KERNELS):
    mesh = sharding.make_mesh(config)
  cfg = _shape(config, mesh)
  stacks = {
    side: dataclasses.replace(
      cfg, attention=attention, implementation=chosen[side]
    )
    for side, (attention, _) in _sides(config, objective).items()
  }
  if config.model.architecture != 'encoder_decoder':
    return one_stack.make(*stacks.values())
  return encoder_decoder.make(
    dataclasses.replace(stacks['encoder'], N=config.model.num_encoder_layers),
    dataclasses.replace(stacks['decoder'], cross=True),
  )


def choose_attention(
  config, objective: types.Objective, device: jax.Device
) -> dict[str, str]:
  """Implementations of attention on devices like `device`.

  Returns:
    `encoder` or `decoder` -> the implementation of that stack, see
    `attention.choose`.

  Raises:
    UserError: `model.attention` cannot run on such devices.
  """
  model = config.model
  capability = getattr(device, 'compute_capability', '')
  numeric = capability.replace('.', '', 1).isdecimal()
  return {
    side: attention_lib.choose(
      model.attention,
      attention_kernels.Case(
        platform=device.platform,
        # AMD's capabilities are names such as gfx90a.
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


def check(config):
  """Raises UserError unless the fields of `model` are consistent."""
  model = config.model
  sides = model.architecture == 'encoder_decoder'
  if sides != (model.num_encoder_layers > 0):
    raise errors.UserError(
      f'model.num_encoder_layers={model.num_encoder_layers} does not fit '
      f"model.architecture='{model.architecture}'; leave it out"
    )
  if sides and model.token_types:
    raise errors.UserError(
      f'model.token_types={model.token_types} is for one stack, not for '
      "model.architecture='encoder_decoder'; leave it out"
    )
  if model.num_heads % model.num_kv_heads:
    raise errors.UserError(
      f'model.num_heads={model.num_heads} is not divisible by '
      f'model.num_kv_heads={model.num_kv_heads}, so query heads cannot share '
      'keys evenly; change one of them'
    )
  if model.position == 'rotary' and model.head_size % 2:
    raise errors.UserError(
      f"model.position='rotary' rotates pairs, but model.head_size="
      f'{model.head_size} is odd; change it, or model.num_heads'
    )
  if model.scale_readout and not model.tie_embeddings:
    raise errors.UserError(
      'model.scale_readout=True undoes the size of tied embeddings, but '
      'model.tie_embeddings=False; change one of them'
    )


def flops(
  config, objective: types.Objective, convention: str
) -> dict[str, int]:
  """FLOPs of a row's forward pass, by part.

  One stack of width 4, 2 heads of size 2, 1 key-value head, a gated MLP of
  width 8, 1 layer, vocabulary 10, length 3:
  projections  2 x 3 x 4 x (4 + 2 x 2 + 4) = 288
  attention    2 x 2 x 4 x 9 pairs         = 144
  mlp          2 x 3 x 4 x 8 x 3           = 576
  readout      2 x 3 x 4 x 10              = 240

  With an encoder of 1 layer and length 5 in addition:
  projections  + 2 x 5 x 4 x 12                  encoder        = 480
               + 2 x 4 x (3 x (4 + 4) + 5 x 2 x 2)   cross      = 352
  attention    + 2 x 2 x 4 x (25 pairs + 15 cross)              = 640
  mlp          + 2 x 5 x 4 x 8 x 3               encoder        = 960

  Args:
    convention: see `training/flops.py`.
  """
  model, capacity = config.model, objective.capacity
  width = model.width
  queries = model.num_heads * model.head_size
  keys = 2 * model.num_kv_heads * model.head_size
  gated = blocks.ACTIVATIONS[model.activation][1]
  mlp = model.mlp_width * (3 if gated else 2)
  # Numbers of positions, summed over layers.
  decoder = model.num_layers * capacity.tokens
  encoder = model.num_encoder_layers * capacity.encoder_tokens
  cross = model.num_layers * capacity.encoder_tokens
  pairs = model.num_encoder_layers * capacity.encoder_tokens**2
  pairs += model.num_layers * (
    _self_pairs(objective, convention)
    + capacity.tokens * capacity.encoder_tokens
  )
  projected = (decoder + encoder) * (2 * queries + keys)
  if capacity.encoder_tokens:
    projected += decoder * 2 * queries + cross * keys
  positions = capacity.tokens
  if convention == 'computed':
    positions = capacity.predictions or positions
  readout = config.data.vocab_size
  readout += width if model.readout == 'transform' else 0
  return {
    'projections': 2 * width * projected,
    'attention': 2 * 2 * queries * pairs,  # scores, and weights times values
    'mlp': 2 * width * (decoder + encoder) * mlp,
    'readout': 2 * width * positions * readout,
  }


def _self_pairs(objective: types.Objective, convention: str) -> int:
  """Number of query-key pairs in each layer of the decoder, or only stack."""
  tokens = objective.capacity.tokens
  if convention == 'square':
    return tokens**2
  if objective.attention not in attention_lib.ATTENTIONS:
    raise ValueError(f'unknown attention {objective.attention!r}')
  if objective.attention != 'causal':
    return tokens**2
  edges = attention_lib.query_blocks(tokens)
  return sum((end - start) * end for start, end in edges)


def _shape(config, mesh: jax.sharding.Mesh | None) -> blocks.TransformerConfig:
  """The shape that all stacks of a model share; `make` adds what differs."""
  model: Any = config.model
  return blocks.TransformerConfig(
    V=config.data.vocab_size,
    L=config.data.sequence_length,
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


def _sides(config, objective: types.Objective) -> dict[str, tuple[str, int]]:
  """Stack -> pattern of its self-attention and length of its rows."""
  attention, capacity = objective.attention, objective.capacity
  architecture = config.model.architecture
  if architecture != 'encoder_decoder':
    return {architecture: (attention, capacity.tokens)}
  return {
    'encoder': ('bidirectional', capacity.encoder_tokens),
    'decoder': (attention, capacity.tokens),
  }


FAMILY = types.Family(
  make=make,
  architectures=ARCHITECTURES,
  attention=attention_lib.ATTENTIONS,
  flops=flops,
  rules=_RULES,
  fields=FIELDS,
  check=check,
  check_devices=choose_attention,
  splits=_SPLITS,
)
