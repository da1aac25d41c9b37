"""A model with its parameters, as scoring and generation use it."""

import dataclasses

import jax
import ml_collections

from lm import types
from lm.data import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A trained model and what belongs to it.

  params: the parameters that are evaluated, after `step` steps.
  """

  config: ml_collections.FrozenConfigDict
  tokenizer: tokenizer_lib.Tokenizer
  objective: types.Objective
  model: types.Model
  mesh: jax.sharding.Mesh
  params: types.Params
  step: int
