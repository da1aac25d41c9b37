"""The layout of inputs and targets in an Example, for each architecture.

Objectives that are defined by pairs, inputs -> targets, differ in the pair
alone: `objective` builds them from it. What a decoder or an encoder-decoder
reads of a pair is decided only here.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lm import field, types
from lm.data import tokenizer

# Attention among the positions of a decoder's inputs.
INPUTS = ('bidirectional', 'causal')

FIELDS = field.section(
  inputs=field.Field(
    'bidirectional',
    'How inputs see one another where a decoder alone reads inputs and '
    'predicts targets.',
    choices=INPUTS,
    read_with={'model.architecture': ('decoder',)},
  ),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How pairs are arranged in rows.

  example(inputs, targets): their Example; every target has the weight 1.
  size(inputs, targets): its size, given their numbers of tokens.
  attention: see `types.Objective`.
  sides: whether the encoder reads the inputs.
  """

  example: Callable[[np.ndarray, np.ndarray], types.Example]
  size: Callable[[int, int], types.Size]
  attention: str
  sides: bool


def make(config) -> Layout:
  """The layout for `model.architecture` of a resolved config."""
  if config.model.architecture == 'encoder_decoder':
    return Layout(
      encoder_decoder, _encoder_decoder_size, attention='causal', sides=True
    )
  if config.objective.inputs == 'causal':
    return Layout(causal_decoder, _decoder_size, 'causal', sides=False)
  return Layout(decoder, _decoder_size, attention='prefix', sides=False)


def objective(
  config,
  *,
  pair: Callable[
    [types.Record, np.random.Generator], tuple[np.ndarray, np.ndarray]
  ],
  lengths: Callable[..., Sequence[tuple[int, int]]],
  longest: Callable[[int], Sequence[tuple[int, int]]] | None = None,
  capacity: tuple[int, types.Size] | None = None,
  **options,
) -> types.Objective:
  """Builds an objective that is defined by its pairs.

  Args:
    pair(record, rng): inputs and targets, in numpy; the targets are predicted
      from left to right, given all of the inputs.
    lengths(n, rng): numbers of tokens (inputs, targets) that the pair of a
      chunk of n tokens can have; several if they depend on an EOS at its end.
      Its draws equal the first ones of `pair`.
    longest(n): upper bounds of `lengths` over all draws. None: `lengths` draws
      nothing.
    capacity: number of tokens of the longest chunk, and a row's capacity. None:
      the longest chunk all of whose pairs fit `data.sequence_length`, found
      by `longest`.
    options: other fields of `types.Objective`.
  """
  layout = make(config)
  longest = longest or (lambda n: lengths(n, None))

  def upper_bound(n: int) -> types.Size:
    return widest(layout.size(*found) for found in longest(n))

  raw_length, capacity = capacity or fit(
    upper_bound, config.data.sequence_length, sides=layout.sides
  )
  return types.Objective(
    raw_length=raw_length,
    capacity=capacity,
    sizes=lambda n, rng: [widest(layout.size(*x) for x in lengths(n, rng))],
    corrupt=lambda record, rng: [layout.example(*pair(record, rng))],
    attention=layout.attention,
    **{'upper_bound': upper_bound, **options},
  )


def fit(
  upper_bound: Callable[[int], types.Size], length: int, *, sides: bool
) -> tuple[int, types.Size]:
  """Tokens of the longest chunk whose sides fit a row, and a row's capacity.

  The longest chunk has 0 tokens if not even one token fits.

  Args:
    upper_bound: see `types.Objective`.
    length: positions of a row, both sides together.
    sides: see `Layout`.
  """
  raw, capacity = 0, types.Size(tokens=0)
  while (wider := widest([capacity, upper_bound(raw + 1)])).positions <= length:
    raw, capacity = raw + 1, wider
  if sides:
    # One more token of text could need both sides, so positions may be left;
    # the targets' side has them.
    left = length - capacity.encoder_tokens
    return raw, types.Size(left, capacity.encoder_tokens)
  predictions_ = predictions(capacity.predictions, length)
  return raw, types.Size(tokens=length, predictions=predictions_)


def widest(sizes: Iterable[types.Size]) -> types.Size:
  """The largest number of each kind of positions among some sizes."""
  columns = zip(*map(dataclasses.astuple, sizes), strict=True)
  return types.Size(*map(max, columns))


def decoder(inputs: np.ndarray, targets: np.ndarray) -> types.Example:
  """One sequence: inputs attend to all inputs, targets to what precedes them.

  inputs [10 11], targets [12 13 EOS]
  tokens   [BOS 10 11 12  13]
  targets  [ 10 11 12 13 EOS]
  weights  [  0  0  1  1   1]
  order    [  0  0  0  1   2]
  """
  ids_L = np.concatenate([inputs, targets]).astype(np.int32)
  given = len(inputs)
  return types.Example(
    tokens_L=np.concatenate([[tokenizer.BOS], ids_L[:-1]]).astype(np.int32),
    targets_L=ids_L,
    weights_L=(np.arange(len(ids_L)) >= given).astype(np.float32),
    order_L=np.maximum(np.arange(len(ids_L), dtype=np.int32) - given, 0),
  )


def causal_decoder(inputs: np.ndarray, targets: np.ndarray) -> types.Example:
  """As `decoder`, but inputs attend only to what precedes them, too.

  inputs [10 11], targets [12 13 EOS]
  order    [0 1 2 3 4]
  """
  example = decoder(inputs, targets)
  order_L = np.arange(len(example.order_L), dtype=np.int32)
  return dataclasses.replace(example, order_L=order_L)


def encoder(
  ids_L: np.ndarray, corrupted_L: np.ndarray, weights_L: np.ndarray
) -> types.Example:
  """One bidirectional sequence; each token is predicted at its own position.

  ids [10 11 EOS], corrupted [MASK 11 EOS], weights [1 0 0]
  tokens   [BOS MASK 11 EOS]
  targets  [BOS   10 11 EOS]
  weights  [  0    1  0   0]
  order    [  0    0  0   0]
  """
  return types.Example(
    tokens_L=np.concatenate([[tokenizer.BOS], corrupted_L]).astype(np.int32),
    targets_L=np.concatenate([[tokenizer.BOS], ids_L]).astype(np.int32),
    weights_L=np.concatenate([[0.0], weights_L]).astype(np.float32),
    order_L=np.zeros(len(ids_L) + 1, np.int32),
  )


def encoder_decoder(inputs: np.ndarray, targets: np.ndarray) -> types.Example:
  """Inputs on the encoder's side, targets on the decoder's, each after BOS.

  inputs [10 11], targets [12 13 EOS]
  encoder_tokens  [BOS 10 11]
  tokens          [BOS 12  13]
  targets         [ 12 13 EOS]
  weights         [  1  1   1]
  order           [  0  1   2]
  """
  return types.Example(
    tokens_L=np.concatenate([[tokenizer.BOS], targets[:-1]]).astype(np.int32),
    targets_L=targets.astype(np.int32),
    weights_L=np.ones(len(targets), np.float32),
    order_L=np.arange(len(targets), dtype=np.int32),
    encoder_tokens_M=np.concatenate([[tokenizer.BOS], inputs]).astype(np.int32),
  )


def prepend(
  example: types.Example, token: int, *, causal: bool
) -> types.Example:
  """Adds a token before the inputs of an example.

  inputs [10 11], targets [12 13 EOS] on a decoder, token S
  tokens   [BOS S 10 11 12  13]
  targets  [  S 10 11 12 13 EOS]
  weights  [  0  0  0  1  1   1]
  order    [  0  0  0  0  1   2]

  Args:
    causal: whether order increases from the start.
  """
  if example.encoder_tokens_M is not None:
    tokens_M = _insert(example.encoder_tokens_M, 1, token)
    return dataclasses.replace(example, encoder_tokens_M=tokens_M)
  return dataclasses.replace(
    example,
    tokens_L=_insert(example.tokens_L, 1, token),
    targets_L=_insert(example.targets_L, 0, token),
    weights_L=_insert(example.weights_L, 0, 0),
    order_L=_insert(example.order_L + np.int32(causal), 0, 0),
  )


def _insert(values: np.ndarray, place: int, value) -> np.ndarray:
  # np.insert takes ten times as long.
  value = np.array([value], values.dtype)
  return np.concatenate([values[:place], value, values[place:]])


def _decoder_size(inputs: int, targets: int) -> types.Size:
  return types.Size(tokens=inputs + targets, predictions=targets)


def _encoder_decoder_size(inputs: int, targets: int) -> types.Size:
  return types.Size(
    tokens=targets, encoder_tokens=inputs + 1, predictions=targets
  )


def predictions(predicted: int, positions: int) -> int:
  """Number of positions that a row reads out, for `types.Size.predictions`.

  Args:
    predicted: tokens that a full row predicts.
    positions: positions of the side that predicts.

  Returns:
    `predicted` with a reserve, since a row of several examples rounds more than
    once, in multiples of 8; or 0, which stands for all positions, if that is
    half of them or more.
  """
  read = -(-(predicted + positions // 64) // 8) * 8
  return read if 2 * read < positions else 0
