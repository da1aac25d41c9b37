"""Model FLOPs: the matrix products that a model needs, by its config alone.

A multiplication with its addition counts two. Everything else is left out:
softmax, norms, activations, lookups, the optimizer, and what rematerialisation
computes a second time. A training step is three forward passes, since each
product has two of the same size in its gradient (Kaplan et al. 2020, section
2.1; Chowdhery et al. 2022, appendix B).

Attention compares pairs of a query and a key. How many is a convention, and
both that are in use are here:

  square    each query with each key, also under causal attention, as PaLM's
            appendix B counts, and every position of the side that predicts is
            read out. This one is logged, budgeted and divided by the peak: it
            depends neither on the kernel nor on what a row predicts, so
            objectives of one shape have equal FLOPs, and the utilisation is
            what papers print. Of long causal rows a kernel may skip up to
            half of the square, and an objective that predicts few positions
            reads out no others: the utilisation contains both gains.
  computed  what the reference path in `models/attention.py` computes: its
            causal blocks skip keys that come after; and what is read out is
            what the objective predicts. XLA counts these.

Of an encoder-decoder each side attends to itself, and each position of the
decoder to each of the encoder.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import jax

from lm import types
from lm.models import attention as attention_lib, blocks
from lm.objectives import base as objectives_base

# Kind of device -> dense bfloat16 FLOP/s of one JAX device. The first that is
# found counts; no entry, no utilisation. Cloud TPU's pages "System
# architecture" give a chip's; a v2 or v3 chip is two devices. NVIDIA's data
# sheets of each card mostly give twice as much, for sparse matrices.
PEAKS = (
  (r' MIG ', None),  # a slice of a card
  (r'^TPU v2$', 22.5e12),
  (r'^TPU v3$', 61.5e12),
  (r'^TPU v4$', 275e12),
  (r'^TPU v5( lite|e)$', 197e12),
  (r'^TPU v5p?$', 459e12),
  (r'^TPU v6( lite|e)$', 918e12),
  (r'\bA100\b', 312e12),
  (r'\bH100 PCIe\b', 756.5e12),
  (r'\bH[12]00 NVL\b', 835.5e12),
  (r'\b(H100|H200|GH200)\b', 989.5e12),
  (r'\bB200\b', 2250e12),
  (r'\bL4\b', 121e12),
  (r'\bL40S\b', 362e12),
)


def train_step(
  config, objective: objectives_base.Objective, *, convention: str = 'square'
) -> int:
  """FLOPs of a training step on `data.batch_size` rows, see `forward`."""
  return 3 * forward(config, objective, convention=convention)


def forward(
  config, objective: objectives_base.Objective, *, convention: str = 'square'
) -> int:
  """FLOPs of a forward pass over `data.batch_size` rows.

  Args:
    config: resolved.
    objective: says what a row has room for, and who sees whom.
    convention: of `CONVENTIONS`, see above.
  """
  work = CONVENTIONS[convention](objective)
  parts = FAMILIES[config.model.family](config, objective.capacity, work)
  return config.data.batch_size * sum(parts.values())


def utilization(
  flops_per_second: float, devices: Sequence[jax.Device]
) -> float | None:
  """Share of the devices' peak for bfloat16, whatever the model's dtype.

  None where the peak of a kind of device is not known, as on CPU.
  """
  peaks = [peak(device.device_kind) for device in devices]
  if None in peaks:
    return None
  return flops_per_second / sum(peaks)


def peak(device_kind: str) -> float | None:
  """Dense bfloat16 FLOP/s of a device; None where it is not known."""
  for pattern, value in PEAKS:
    if re.search(pattern, device_kind):
      return value
  return None


@dataclasses.dataclass(frozen=True)
class Work:
  """Of a row: pairs of a query and a key in each layer, positions read out."""

  pairs: int
  encoder_pairs: int
  cross_pairs: int
  readout: int


def _square(objective: objectives_base.Objective) -> Work:
  room = objective.capacity
  return Work(
    pairs=room.tokens**2,
    encoder_pairs=room.encoder_tokens**2,
    cross_pairs=room.tokens * room.encoder_tokens,
    readout=room.tokens,
  )


def _computed(objective: objectives_base.Objective) -> Work:
  work = _square(objective)
  if objective.attention not in attention_lib.ATTENTIONS:
    raise ValueError(f'unknown attention {objective.attention!r}')
  pairs = work.pairs
  if objective.attention == 'causal':
    edges = attention_lib.query_blocks(objective.capacity.tokens)
    pairs = sum((end - start) * end for start, end in edges)
  return dataclasses.replace(
    work, pairs=pairs, readout=objective.capacity.predictions or work.readout
  )


# Convention -> objective -> what a row is.
CONVENTIONS: dict[str, Callable[[objectives_base.Objective], Work]] = {
  'square': _square,
  'computed': _computed,
}


def _transformer(config, room: types.Size, work: Work) -> dict[str, int]:
  """A row's forward pass, by part.

  One stack of width 4, 2 heads of 2, 1 key-value head, gated MLP of 8, 1 layer,
  vocabulary 10, length 3
  projections  2 x 3 x 4 x (4 + 2 x 2 + 4) = 288
  attention    2 x 2 x 4 x 9 pairs         = 144
  mlp          2 x 3 x 4 x 8 x 3           = 576
  readout      2 x 3 x 4 x 10              = 240

  With an encoder of 1 layer and length 5 besides
  projections  + 2 x 5 x 4 x 12                  encoder        = 480
               + 2 x 4 x (3 x (4 + 4) + 5 x 2 x 2)   cross      = 352
  attention    + 2 x 2 x 4 x (25 pairs + 15 across)             = 640
  mlp          + 2 x 5 x 4 x 8 x 3               encoder        = 960
  """
  model = config.model
  width = model.width
  queries = model.num_heads * model.head_size
  keys = 2 * model.num_kv_heads * model.head_size
  gated = blocks.ACTIVATIONS[model.activation][1]
  mlp = model.mlp_width * (3 if gated else 2)
  # Positions of layers, of all layers together.
  decoder = model.num_layers * room.tokens
  encoder = model.num_encoder_layers * room.encoder_tokens
  read = model.num_layers * room.encoder_tokens
  pairs = model.num_encoder_layers * work.encoder_pairs
  pairs += model.num_layers * (work.pairs + work.cross_pairs)
  projected = (decoder + encoder) * (2 * queries + keys)
  if room.encoder_tokens:
    projected += decoder * 2 * queries + read * keys
  readout = config.data.vocab_size
  readout += width if model.readout == 'transform' else 0
  return {
    'projections': 2 * width * projected,
    'attention': 2 * 2 * queries * pairs,  # scores, and weights times values
    'mlp': 2 * width * (decoder + encoder) * mlp,
    'readout': 2 * width * work.readout * readout,
  }


# Family -> (config, room of a row, its work) -> FLOPs of its forward pass, by
# part.
FAMILIES: dict[str, Callable[..., dict[str, int]]] = {
  'transformer': _transformer
}
