"""Model FLOPs: the matrix products that a model needs, by its config alone.

A multiplication with its addition counts two. Everything else is left out:
softmax, norms, activations, lookups, the optimizer, and what rematerialisation
computes a second time. A training step is three forward passes, since each
product has two of the same size in its gradient (Kaplan et al. 2020, section
2.1; Chowdhery et al. 2022, appendix B).

Attention compares pairs of a query and a key. Two conventions for their number
are in use:

  square    each query with each key, also under causal attention, as PaLM's
            appendix B counts, and every position of the side that predicts is
            read out. Logs, budgets and utilisation use this one: it depends
            neither on the kernel nor on what a row predicts, so objectives of
            one shape have equal FLOPs, and the utilisation is the one that
            papers print. A kernel may skip up to half of the square of long
            causal rows, and an objective that predicts few positions reads
            out no others: the utilisation contains both gains.
  computed  the pairs that the reference path in `models/attention.py`
            computes, whose causal blocks skip later keys; only the positions
            that the objective predicts are read out. XLA counts these.

In an encoder-decoder each side attends to itself, and each position of the
decoder to each of the encoder.
"""

import re
from collections.abc import Sequence

import jax

from lm import models, types

CONVENTIONS = ('square', 'computed')

# Pattern of a kind of device -> dense bfloat16 FLOP/s of one JAX device; the
# first match counts, and without one there is no utilisation. Sources: Cloud
# TPU's pages "System architecture", for a chip (a v2 or v3 chip is two
# devices); NVIDIA's data sheets, which mostly give twice as much, for sparse
# matrices.
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
  config, objective: types.Objective, *, convention: str = 'square'
) -> int:
  """FLOPs of a training step on `data.batch_size` rows, see `forward`."""
  return 3 * forward(config, objective, convention=convention)


def forward(
  config, objective: types.Objective, *, convention: str = 'square'
) -> int:
  """FLOPs of a forward pass over `data.batch_size` rows.

  Args:
    config: resolved.
    objective: gives a row's capacity and its attention.
    convention: one of `CONVENTIONS`, see above.
  """
  parts = models.family(config).flops(config, objective, convention)
  return config.data.batch_size * sum(parts.values())


def utilization(
  flops_per_second: float, devices: Sequence[jax.Device]
) -> float | None:
  """Share of the devices' bfloat16 peak, whatever the model's dtype.

  None where the peak of a device is unknown, as on CPU.
  """
  peaks = [peak(device.device_kind) for device in devices]
  if None in peaks:
    return None
  return flops_per_second / sum(peaks)


def peak(device_kind: str) -> float | None:
  """Dense bfloat16 FLOP/s of a device; None where it is unknown."""
  for pattern, value in PEAKS:
    if re.search(pattern, device_kind):
      return value
  return None
