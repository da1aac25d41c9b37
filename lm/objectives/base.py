"""What an objective is: a frozen value of functions for data and loss."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from lm import losses, types
from lm.models import base


@dataclasses.dataclass(frozen=True)
class Record:
  """A chunk of a document, on the host.

  ids_L: int32; the last id is EOS where the document truly ends.
  word_L: int32, index of the word that each token belongs to.
  """

  ids_L: np.ndarray
  word_L: np.ndarray


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a model is trained to predict.

  raw_length: tokens of the longest chunk that fits a row.
  size(n, rng): positions that a chunk of n tokens takes in a row; makes the
    same first draws as `corrupt`.
  corrupt(record, rng): the Example made of a chunk, in numpy; a pure function
    of the record and the generator's state.
  loss(model, params, batch, key, train): sums and weights by term, in JAX. A
    weight depends on the batch alone, never on parameters.
  coefficients: term -> factor in the trained loss.
  attention: who sees whom, what `order` of every Example amounts to.
  scorer: how held-out text is scored, see `scoring.py`.
  """

  raw_length: int
  size: Callable[[int, np.random.Generator], int]
  corrupt: Callable[[Record, np.random.Generator], types.Example]
  loss: Callable[
    [base.Model, base.Params, types.Batch, jax.Array | None, bool], losses.Terms
  ]
  coefficients: Mapping[str, float]
  attention: str
  scorer: str
