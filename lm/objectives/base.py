"""What an objective is: a frozen value of functions for data and loss."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from lm import types
from lm.models import base
from lm.objectives import cross_entropy


@dataclasses.dataclass(frozen=True)
class Record:
  """A chunk of a document, on the host.

  ids_L: int32; the last id is EOS where the document truly ends.
  word_L: int32, index of the word that each token belongs to, from 0.
  place: of the chunk in its epoch's shuffled order, counted from a number that
    is drawn for the epoch. What is to be spread evenly over neighbours, which
    often share a batch, depends on it.
  """

  ids_L: np.ndarray
  word_L: np.ndarray
  place: int = 0


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a model is trained to predict.

  raw_length: tokens of the longest chunk, or pair, that fits a row.
  capacity: what a row has room for; what it reads out is static, see
    `types.Batch.predict_BxP`.
  sizes(n, rng): what the examples made of a chunk of n tokens take, in order;
    makes the same first draws as `corrupt`. A size is no less than what
    `corrupt` uses. Nearly always there is one example a chunk. Of a pair n is
    (tokens of the source with its SEP, tokens of the target with its EOS), and
    whether its size fits a row depends on no draw.
  corrupt(record, rng): those examples, in numpy; a pure function of the record
    and the generator's state.
  most(n): no less than a size of any chunk of n tokens; None: not told. An
    objective that is to be part of a mixture tells it.
  loss(model, params, batch, key, train): sums and weights by term, in JAX. A
    weight depends on the batch alone, never on parameters.
  coefficients: term -> factor in the trained loss.
  attention: who sees whom, what `order` of every Example amounts to, see
    `attention.ATTENTIONS`.
  scorer: how held-out text is scored, see KINDS of `queries.py`; or none.
  continuation(context, scored): the Example, in the trained format, in which
    the ids `scored` follow the ids `context`; it has the weight 1 where they
    are predicted, in their order, and 0 elsewhere. None: there is none.
  continued: tokens that one such Example can score at most; None: any number.
  filling(inputs, targets): the Example of inputs in which sentinels stand for
    what the targets hold. None: it fills none.
  pairs: whether it is trained on pairs, never cut, each a record `source SEP
    target EOS`, for whose n `sizes` gets the tokens of either side, SEP counted
    to the source; else on chunks of documents, and of pairs as of other text.
  generates: what `generate.py` can do with it, of `continuation`, `masks` (the
    candidates at each [MASK]), `spans` (behind sentinels), `unmasking` (of a
    continuation or of masks, over some steps), `target` (of a source).
  """

  raw_length: int
  capacity: types.Size
  sizes: Callable[
    [int | tuple[int, int], np.random.Generator], Sequence[types.Size]
  ]
  corrupt: Callable[[Record, np.random.Generator], Sequence[types.Example]]
  loss: Callable[
    [base.Model, base.Params, types.Batch, jax.Array | None, bool],
    cross_entropy.Terms,
  ]
  coefficients: Mapping[str, float]
  attention: str
  scorer: str
  most: Callable[[int], types.Size] | None = None
  continuation: Callable[[np.ndarray, np.ndarray], types.Example] | None = None
  continued: int | None = None
  filling: Callable[[np.ndarray, np.ndarray], types.Example] | None = None
  pairs: bool = False
  generates: tuple[str, ...] = ()
