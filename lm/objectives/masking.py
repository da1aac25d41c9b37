"""Helpers that masked language modelling and masked diffusion share.

Tokens of a text are masked, each is predicted at its own position, and all
positions see one another.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm import types
from lm.data import tokenizer
from lm.objectives import layout


def maskable(ids_L: np.ndarray) -> np.ndarray:
  """Indices of the tokens that may be masked: text, not special tokens.

  ids [300 301 EOS] -> [0 1]
  """
  return np.flatnonzero(ids_L >= tokenizer.NUM_SPECIAL)


def subset(count: int, k: int, rng: np.random.Generator) -> np.ndarray:
  """k of the numbers below `count`; each set of k is equally likely."""
  return rng.choice(count, k, replace=False, shuffle=False)


def example(
  ids_L: np.ndarray,
  places: np.ndarray,
  *,
  weight: float = 1.0,
  read: int | np.ndarray = tokenizer.MASK,
) -> types.Example:
  """The Example in which the tokens at the given places are predicted.

  ids [300 301 302 EOS], places [0 2], weight 2.0, read [MASK 302]
  tokens   [BOS MASK 301 302 EOS]
  targets  [BOS  300 301 302 EOS]
  weights  [  0    2   0   2   0]
  order    [  0    0   0   0   0]

  Args:
    weight: loss weight of each prediction.
    read: ids that the model reads at these places: one for all, or one each.
  """
  read_L = np.array(ids_L, np.int32)
  read_L[places] = read
  weights_L = np.zeros(len(ids_L), np.float32)
  weights_L[places] = weight
  return layout.encoder(ids_L, read_L, weights_L)


def text_tokens(batch: types.Batch) -> jax.Array:
  """Number of tokens of text in a batch, masked or not, float32.

  targets [BOS 300 301 EOS PAD], segment [1 1 1 1 0] -> 2
  """
  text_BxL = batch.targets_BxL >= tokenizer.NUM_SPECIAL
  return jnp.sum(text_BxL & (batch.segment_BxL > 0), dtype=jnp.float32)
