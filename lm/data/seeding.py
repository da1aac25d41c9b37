"""Random generators that depend on names and numbers, never on call order."""

import numpy as np

# Purposes of a generator; part of its counter.
OFFSETS, ORDER, CHUNK, PASS = range(4)


def generator(
  seed: int, epoch: int, purpose: int, index: int = 0
) -> np.random.Generator:
  """A NumPy generator that depends on its arguments alone."""
  # The low words of the counter count draws; the high ones separate streams.
  bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, index, purpose])
  return np.random.Generator(bits)
