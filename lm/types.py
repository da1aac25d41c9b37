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

# Name of a loss term -> (sum, weight), two float32 scalars. The only division
# of the two is in `training/step.py`.
Terms = dict[str, tuple[jax.Array, jax.Array]]

# Name of the term that a loss with extras trains: the cross-entropy + sum of
# factor * extra. Its parts are terms beside it, without gradient; they are
# logged, and it is logged as `loss` alone.
TRAINED = 'trained'

# {'trunk', 'heads', 'networks'}: nested dicts of float32 arrays.
Params = dict[str, Any]

# Nested containers of arrays whose leading axis is B, so that beam search can
# gather rows. cache['length'], int32 [B], always holds the number of positions
# of each row that have been read.
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
  """A chunk of a document, on the host, before an objective corrupts it.

  The arrays may be read-only views: objectives copy what they change.

  ids_L: int32; the last id is EOS where the document truly ends.
  word_L: int32, index of the word that each token belongs to, from 0.
  place: position of the chunk in its epoch's shuffled order, counted from a
    number that is drawn for the epoch. Neighbouring chunks often share a batch:
    values that should spread evenly over a batch are derived from it.
  """

  ids_L: np.ndarray
  word_L: np.ndarray
  place: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
  """One segment of a row, on the host.

  Packing copies every array by the name of its field and computes `segment`,
  `position` and `predict` itself. `Objective.arrays` lists the optional arrays
  that an objective's Examples have, which is static.

  tokens_L: int32, tokens that the model reads; the decoder's, if there is an
    encoder.
  targets_L: int32, token to predict at each position; where nothing is
    predicted, the text's own token or PAD.
  weights_L: float32, loss weight of each position; 0: nothing is predicted.
  order_L: int32, generation order: position i may see j when
    order[j] <= order[i]. Causal is 0, 1, 2, ...; bidirectional 0, 0, 0, ...; a
    prefix 0, ..., 0, 1, 2, ...
  type_L: int32, sentence A (0) or B (1).
  component_L: int32, index of the mixture's component.
  encoder_tokens_M: int32, tokens that the encoder of an encoder-decoder reads,
    in both directions; None without an encoder.
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
  """Numbers of positions of an example, or of a row (its capacity).

  tokens: positions of the decoder, or of the only stack.
  encoder_tokens: positions of the encoder.
  predictions: positions that are read out; 0 in a row's capacity: all of them.
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
  predict_BxP: int32, the positions with a weight in ascending order, followed
    by zeros; None: all positions are read out.
  encoder_*_BxM: the encoder's side, whose segments have the numbers of the
    decoder's; None without an encoder.
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
  """Pure functions from tokens to the distributions of predicted tokens.

  init(key) -> params. Shapes of the trunk depend on the config alone, never on
    the objective.
  hidden(params, batch, *, key=None, train=False) -> [B, L, D]; callers index
    it only along B and L. `key` draws dropout masks when `train`.
  logits(params, hidden [B, l, D]) -> [B, l, V], separate from `hidden` so that
    callers read out only the positions that they need.
  token_log_probs(params, batch, allowed_V=None, *, chunk=None) ->
    (log_p [B, P], special_mass [B, P]): the targets' log-probabilities at the
    positions that are read out, see `models/readout.py`.
  start(params, batch, length) -> (hidden [B, L, D], cache): reads prompts,
    one segment a row from position 0, padding after it. The cache's capacity
    is `length` positions.
  extend(params, cache, tokens [B, T]) -> (hidden [B, T, D], cache): reads T
    more tokens a row, each row continuing where its prompt ended. Positions
    beyond the cache's capacity are dropped: callers stop before.
  head(name, params, hidden [B, l, D]) -> output of the head `name` of
    `config.model.heads` at these positions; None without heads.

  For an encoder-decoder, hidden states are the decoder's, and `start` runs the
  encoder, too.
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
  capacity: positions of a row; how many are read out is static, see
    `Batch.predict_BxP`.
  sizes(n, rng): sizes of a chunk's examples, in order, or upper bounds of them,
    for a chunk of n tokens, which nearly always yields one example. Its draws
    equal the first ones of `corrupt`. For a pair, n is (tokens of the source
    with its SEP, tokens of the target with its EOS), and whether its size fits
    a row depends on no draw.
  corrupt(record, rng): those examples, in numpy; a pure function of the record
    and the generator's state.
  attention: attention pattern, the static counterpart of every Example's
    `order`, see `attention.ATTENTIONS`.
  scorer: method by which held-out text is scored, a name of METHODS in
    `evaluation/scoring_methods.py`; or 'none'.
  loss(model, params, batch, key, train): sums and weights by term, in JAX. A
    weight depends on the batch alone, never on parameters. None stands for the
    cross-entropy of the targets, whose tokens can be pooled with those of
    other objectives; `objectives.make` replaces it by that loss.
  coefficients: term -> factor in the trained loss. Terms without one are only
    reported.
  arrays: names of the optional arrays of its Examples, without axes; the
    encoder's side follows from `capacity.encoder_tokens`.
  upper_bound(n): upper bound of `sizes(n)` over all draws; required of a
    mixture's components.
  continuation(context, scored): the Example, in the trained format, in which
    the ids `scored` follow the ids `context`; its weights are 1 where they are
    predicted, in their order, and 0 elsewhere. None: not supported.
  scored_at_once: maximum number of tokens that one such Example can score;
    None: unlimited.
  filling(inputs, targets): the Example whose targets fill in the sentinels of
    the inputs. None: not supported.
  generates: strategies of `generation/strategies.py` that it supports:
    `continuation`, `masks` (the candidates at each [MASK]), `spans` (after
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
  """Properties of an objective that are known before it is built.

  make(config, tokenizer) -> Objective for a resolved config. Without a
    tokenizer every id below `data.vocab_size` that is not special counts as a
    piece of text.
  architectures: supported values of `model.architecture`; the first is the
    default.
  attention: attention patterns that its Examples can require.
  inputs_hold_targets: whether predicted tokens can be among the inputs, as
    those that BERT keeps, and all of deshuffling; read by the test that nothing
    else leaks.
  data: records that it reads: `text` (chunks of documents, never of pairs),
    `pairs`, or `any` (pairs as text with SEP between their sides).
  fields: declarations of its own config section, see `lm/field.py`.
  reads: dotted names of fields of other sections that only some objectives
    read.
  unread(config, name): why it does not read a field 'objective.SECTION.field',
    with the mend; None if it reads it. None: it reads its own section.
  former_name: its name in older run folders.
  check(config): raises UserError unless its fields are consistent with one
    another and with the row.
  """

  make: Callable[..., Objective]
  architectures: tuple[str, ...]
  attention: tuple[str, ...]
  inputs_hold_targets: bool = False
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
  matrices: (number of leading axes that count layers, number of input axes);
    the other axes are outputs. A parameter without input axes is made of
    vectors.
  muon: optimizer that `optimizer.name='muon'` applies, `muon` or `adamw`.
  """

  sharding: Sequence[tuple[str, Any]]
  decay: Sequence[tuple[str, bool]]
  matrices: Sequence[tuple[str, tuple[int, int]]]
  muon: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Family:
  """Properties of a model family that are known before a model is built.

  make(config, objective, mesh) -> Model; `mesh` may be None, see
    `models.make`.
  architectures: supported values of `model.architecture`.
  attention: supported attention patterns.
  flops(config, objective, convention) -> FLOPs of a row's forward pass, by
    part, see `training/flops.py`.
  rules: see `ParameterRules`.
  fields: declarations of the fields of `config.model` that it reads.
  check(config): raises UserError unless its fields are consistent.
  check_devices(config, objective, device): raises UserError unless devices like
    `device` can run the model.
  splits: field whose value must be divisible by the size of a mesh axis -> that
    axis.
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
