"""The contracts between data, objectives, models and the training loop.

Whoever adds an objective or a model family reads this page and writes one file.

Axes, in every array's name: B batch, L length, D width, H heads, K head size,
F feed-forward, V vocabulary, N layers; besides, M length of an encoder's side,
P positions of a row that are read out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Name of a loss term -> (sum, weight), two float32 scalars. The one division is
# in `training/step.py`.
Terms = dict[str, tuple[jax.Array, jax.Array]]

# {'trunk', 'heads', 'networks'}: nested dicts of float32 arrays.
Params = dict[str, Any]

# Arrays whose leading axis is B, so that rows can be gathered (beam search does
# so). 'length', int32 [B], is always there: positions of each row that were
# read so far.
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
  """A chunk of a document, on the host, before an objective corrupts it.

  The arrays may be read-only views: objectives copy what they change.

  ids_L: int32; the last id is EOS where the document truly ends.
  word_L: int32, index of the word that each token belongs to, from 0.
  place: position of the chunk in its epoch's shuffled order, counted from a
    number that is drawn for the epoch. What is to be spread evenly over
    neighbours, which often share a batch, depends on it.
  """

  ids_L: np.ndarray
  word_L: np.ndarray
  place: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
  """One segment of a row, on the host.

  Packing copies every array by the name of its field and makes `segment`,
  `position` and `predict` itself. Which of the optional arrays are there is
  static: `Objective.arrays` lists them.

  tokens_L: int32, what the model reads; the decoder's side, if there are two.
  targets_L: int32, what it must predict at that position. Where nothing is
    predicted it is the text's own token there, or PAD.
  weights_L: float32, loss weight of the position; 0: nothing is predicted.
  order_L: int32, generation order: position i may see j when
    order[j] <= order[i]. Causal is 0, 1, 2, ...; bidirectional 0, 0, 0, ...; a
    prefix 0, ..., 0, 1, 2, ...
  type_L: int32, sentence A (0) or B (1).
  component_L: int32, index within a mixture.
  encoder_tokens_M: int32, what the encoder of an encoder-decoder reads, all of
    which sees all of it; None without an encoder.
  """

  tokens_L: np.ndarray
  targets_L: np.ndarray
  weights_L: np.ndarray
  order_L: np.ndarray
  type_L: np.ndarray | None = None
  component_L: np.ndarray | None = None
  encoder_tokens_M: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Size:
  """Numbers of positions: of an example, or of a row (its capacity).

  tokens: positions of the decoder, or of the only stack.
  encoder_tokens: positions of the encoder.
  predictions: positions that are read out; 0 for a row: all are.
  """

  tokens: int
  encoder_tokens: int = 0
  predictions: int = 0

  @property
  def positions(self) -> int:
    """Positions of both sides together."""
    return self.tokens + self.encoder_tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of packed examples, each array [B, L], [B, M] or [B, P].

  segment_BxL: int32, number of the example within the row, from 1; 0 is
    padding. Attention and loss never cross it.
  position_BxL: int32, position within the segment, from 0.
  type_BxL, component_BxL: as in `Example`; None: all are 0.
  predict_BxP: int32, the positions with a weight, rising, behind them zeros;
    None: all positions are read out.
  encoder_*_BxM: the input side of an encoder-decoder, its segments numbered as
    those of the decoder; None without an encoder.
  """

  tokens_BxL: jax.Array | np.ndarray
  targets_BxL: jax.Array | np.ndarray
  weights_BxL: jax.Array | np.ndarray
  order_BxL: jax.Array | np.ndarray
  segment_BxL: jax.Array | np.ndarray
  position_BxL: jax.Array | np.ndarray
  type_BxL: jax.Array | np.ndarray | None = None
  component_BxL: jax.Array | np.ndarray | None = None
  predict_BxP: jax.Array | np.ndarray | None = None
  encoder_tokens_BxM: jax.Array | np.ndarray | None = None
  encoder_segment_BxM: jax.Array | np.ndarray | None = None
  encoder_position_BxM: jax.Array | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Model:
  """Tokens to next-token distributions under an order: pure functions.

  init(key) -> params. Shapes of the trunk depend on the config alone, never on
    the objective.
  hidden(params, batch, *, key=None, train=False) -> [B, L, D]; callers index
    it only along B and L. `key` draws dropout masks when `train`.
  logits(params, hidden [B, l, D]) -> [B, l, V], kept apart so that callers
    read out only the positions that they need.
  token_log_probs(params, batch, allowed_V=None, *, chunk=None) ->
    (log_p [B, P], special_mass [B, P]): the targets' log-probabilities at the
    positions that are read out, see `models/readout.py`.
  start(params, batch, length) -> (hidden [B, L, D], cache): reads prompts,
    one segment a row from position 0, padding after it. The cache has room for
    `length` positions in all.
  extend(params, cache, tokens [B, T]) -> (hidden [B, T, D], cache): reads T
    more tokens a row, each row continuing where its prompt ended. Positions
    past the cache's room are not kept: callers stop before.
  head(name, params, hidden [B, l, D]) -> what the head `name` of
    `config.model.heads` makes of these positions; None: there are no heads.

  Of an encoder-decoder, hidden is the decoder's, and `start` reads the
  encoder's side, too.
  """

  init: Callable[[jax.Array], Params]
  hidden: Callable[..., jax.Array]
  logits: Callable[[Params, jax.Array], jax.Array]
  token_log_probs: Callable[..., tuple[jax.Array, jax.Array]]
  start: Callable[[Params, Batch, int], tuple[jax.Array, Cache]]
  extend: Callable[[Params, Cache, jax.Array], tuple[jax.Array, Cache]]
  head: Callable[[str, Params, jax.Array], jax.Array] | None = None


Loss = Callable[[Model, Params, Batch, jax.Array | None, bool], Terms]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a model is trained to predict: functions for data and loss.

  raw_length: tokens of the longest chunk, or pair, that fits a row.
  capacity: positions of a row; what it reads out is static, see
    `Batch.predict_BxP`.
  sizes(n, rng): sizes of the examples made of a chunk of n tokens, in order;
    makes the same first draws as `corrupt`, and upper bounds suffice. Nearly
    always there is one example a chunk. For a pair n is (tokens of the source
    with its SEP, tokens of the target with its EOS), and whether its size fits
    a row depends on no draw.
  corrupt(record, rng): those examples, in numpy; a pure function of the record
    and the generator's state.
  attention: who sees whom, the static counterpart of every Example's `order`,
    see `attention.ATTENTIONS`.
  scorer: how held-out text is scored, see METHODS of
    `evaluation/scoring_methods.py`; or 'none'.
  loss(model, params, batch, key, train): sums and weights by term, in JAX. A
    weight depends on the batch alone, never on parameters. None stands for the
    cross-entropy of the targets, whose tokens can be pooled with those of
    other objectives; `objectives.make` then fills it in.
  coefficients: term -> factor in the trained loss.
  arrays: names of the optional arrays that its Examples have, without axes.
  upper_bound(n): no less than a size of any chunk of n tokens; required of a
    mixture's components.
  continuation(context, scored): the Example, in the trained format, in which
    the ids `scored` follow the ids `context`; it has the weight 1 where they
    are predicted, in their order, and 0 elsewhere. None: there is none.
  scored_at_once: maximum number of tokens that one such Example can score;
    None: any number.
  filling(inputs, targets): the Example of inputs in which sentinels stand for
    what the targets hold. None: it fills none.
  generates: strategies of `generation/strategies.py` that it can serve:
    `continuation`, `masks` (the candidates at each [MASK]), `spans` (behind
    sentinels), `unmasking` (of a continuation or of masks, over some steps),
    `target` (of a source).
  check_length(n): raises UserError unless chunks of up to n tokens can be
    corrupted.
  pairs: whether records are pairs `source SEP target EOS`, which are never
    cut; set by `objectives.make` from the spec.
  """

  raw_length: int
  capacity: Size
  sizes: Callable[[int | tuple[int, int], np.random.Generator], Sequence[Size]]
  corrupt: Callable[[Record, np.random.Generator], Sequence[Example]]
  attention: str
  scorer: str = 'none'
  loss: Loss | None = None
  coefficients: Mapping[str, float] = dataclasses.field(default_factory=dict)
  arrays: tuple[str, ...] = ()
  upper_bound: Callable[[int], Size] | None = None
  continuation: Callable[[np.ndarray, np.ndarray], Example] | None = None
  scored_at_once: int | None = None
  filling: Callable[[np.ndarray, np.ndarray], Example] | None = None
  generates: tuple[str, ...] = ()
  check_length: Callable[[int], None] = lambda n: None
  pairs: bool = False


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
  """What is known of an objective before it is built, beside its `make`.

  make(config, tokenizer) -> Objective, of a resolved config. Without a
    tokenizer every id below `data.vocab_size` that is not special counts as a
    piece of text.
  architectures: values of `model.architecture` that it trains; the first is
    the default.
  attention: patterns that its Examples can ask the model for.
  data: records that it reads: `text` (chunks of documents, never of pairs),
    `pairs`, or `any` (pairs as text with SEP between their sides).
  fields: declarations of its own config section, see `lm/field.py`.
  reads: dotted names of fields of other sections that only some objectives
    read.
  unread(config, name): why it does not read a field 'objective.SECTION.field',
    with the mend; None where it reads it. Left out: it reads its own section.
  former_name: its name in older run folders.
  check(config): raises UserError unless its fields fit together, and the row.
  """

  make: Callable[..., Objective]
  architectures: tuple[str, ...]
  attention: tuple[str, ...]
  data: str = 'any'
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reads: tuple[str, ...] = ()
  unread: Callable[[Any, str], str | None] | None = None
  former_name: str = ''
  check: Callable[[Any], None] = lambda config: None


@dataclasses.dataclass(frozen=True)
class ParameterRules:
  """Ordered rules over parameter paths, see `runtime/parameter_rules.py`.

  sharding: PartitionSpec over the mesh axes; slots of the optimizer end in the
    same paths.
  decay: whether weight decay applies.
  matrices: (axes that count layers, axes of the matrix's input side); the rest
    are its output side. Without an input side a parameter is made of vectors.
  muon: which part of `muon` steps it, `muon` or `adamw`.
  """

  sharding: Sequence[tuple[str, Any]]
  decay: Sequence[tuple[str, bool]]
  matrices: Sequence[tuple[str, tuple[int, int]]]
  muon: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Family:
  """What is known of a model family before it is built, beside its `make`.

  make(config, objective, mesh) -> Model; `mesh` may be None, see
    `models.make`.
  architectures, attention: values of `model.architecture`, and patterns of
    attention, that it can obey.
  flops(config, objective, convention) -> FLOPs of a row's forward pass, by
    part, see `training/flops.py`.
  rules: see `ParameterRules`.
  fields: declarations of the fields of `config.model` that it reads.
  check(config): raises UserError unless its fields fit together.
  check_devices(config, objective, device): raises UserError unless devices like
    `device` can run it.
  splits: fields whose values the mesh divides -> the mesh axis.
  """

  make: Callable[..., Model]
  architectures: tuple[str, ...]
  attention: tuple[str, ...]
  flops: Callable[..., dict[str, int]]
  rules: ParameterRules
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  check: Callable[[Any], None] = lambda config: None
  check_devices: Callable[..., None] = lambda *_: None
  splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
