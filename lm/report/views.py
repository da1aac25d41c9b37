"""Views of an objective's examples, for the terminal and the page."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.data import tokenizer as tokenizer_lib
from lm.models import attention
from lm.report import token_text


@dataclasses.dataclass(frozen=True)
class Stack:
  """The positions of one stack of layers; sequences of length L.

  name: `decoder` or `encoder`.
  reads: text of each token, including padding.
  special_L: whether the token is special.
  segment_L: number of the example within the row; 0 is padding.
  order_L: generation order; None if all positions of a segment see each other.
  predicts: text of each target, '' where nothing is predicted; None for an
    encoder that a decoder reads, which predicts nothing.
  weights_L: loss weights; None if `predicts` is None.
  """

  name: str
  reads: tuple[str, ...]
  special_L: np.ndarray
  segment_L: np.ndarray
  order_L: np.ndarray | None = None
  predicts: tuple[str, ...] | None = None
  weights_L: np.ndarray | None = None

  def lines(self) -> dict[str, list[str]]:
    """Returns the lines to be aligned: name of a line -> L texts."""
    lines = {
      'position': [str(i) for i in range(len(self.reads))],
      'reads': list(self.reads),
    }
    if self.predicts is not None:
      lines['predicts'] = list(self.predicts)
      lines['weight'] = [f'{weight:.3g}' for weight in self.weights_L]
      lines['order'] = [str(order) for order in self.order_L]
    lines['segment'] = [str(segment) for segment in self.segment_L]
    return lines


@dataclasses.dataclass(frozen=True)
class Mask:
  """An attention mask: position i of `query` sees j of `key` where mask_LxM."""

  query: str
  key: str
  mask_LxM: np.ndarray


@dataclasses.dataclass(frozen=True)
class View:
  """What a model reads and predicts, for one example or a packed row.

  objective: name of the objective.
  architecture: architecture of the model.
  attention: attention pattern.
  scorer: scoring method of the objective.
  stacks: stacks in the order of reading; the last one predicts.
  note: further remark.
  """

  objective: str
  architecture: str
  attention: str
  scorer: str
  stacks: tuple[Stack, ...]
  note: str = ''

  @property
  def title(self) -> str:
    """The objective and its architecture."""
    return f'{self.objective}, {self.architecture}'

  def sentence(self) -> str:
    """Counts what is read and predicted, in one sentence."""
    segments = [stack.segment_L for stack in self.stacks]
    counts = count(segments, self.stacks[-1].weights_L)
    inside = ''
    if len(segments) > 1:
      read = int((segments[0] > 0).sum())
      inside = f' ({read:,} of them in the encoder)'
    return (
      f'reads {counts["read"]:,} tokens{inside}, predicts '
      f'{counts["predicted"]:,}, loss weight '
      f'{_weight(counts["weight"])}, padding '
      f'{counts["positions"] - counts["read"]:,}; attention {self.attention}, '
      f'scorer {self.scorer}'
    )

  def masks(self) -> list[Mask]:
    """Masks of the self-attention of each stack, then of cross-attention."""
    found = [_mask(stack, stack) for stack in self.stacks]
    if len(self.stacks) > 1:
      found.append(_mask(self.stacks[1], self.stacks[0]))
    return found


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, and the views of its examples."""

  original: str
  tokens: int
  views: Sequence[View]


@dataclasses.dataclass(frozen=True)
class Summary:
  """Counts over `rows` rows of an objective."""

  objective: str
  architecture: str
  attention: str
  scorer: str
  rows: int
  positions: int
  read: int
  predicted: int
  weight: float

  def cells(self) -> dict[str, str]:
    """Returns the cells of a table: heading -> text."""
    return {
      'objective': self.objective,
      'architecture': self.architecture,
      'rows': f'{self.rows:,}',
      'read': f'{self.read:,}',
      'predicted': f'{self.predicted:,}',
      'loss weight': _weight(self.weight),
      'padding': f'{1 - self.read / self.positions:.1%}',
      'attention': self.attention,
      'scorer': self.scorer,
    }


@dataclasses.dataclass(frozen=True)
class Shown:
  """Everything that is shown.

  source: one line about the origin of the texts.
  texts: texts with the examples of each objective.
  rows: a packed row of each objective; may be empty.
  summaries: counts over rows of each objective.
  notes: lines that say why something is not shown.
  """

  source: str
  texts: Sequence[Text]
  rows: Sequence[View]
  summaries: Sequence[Summary]
  notes: Sequence[str]


def stacks(
  row: Mapping[str, np.ndarray],
  tokenizer: tokenizer_lib.Tokenizer,
  architecture: str,
) -> tuple[Stack, ...]:
  """Returns the stacks of a row returned by `packing.pack`."""
  last = Stack(
    name='encoder' if architecture == 'encoder' else 'decoder',
    reads=_spell(row['tokens'], tokenizer),
    special_L=row['tokens'] < tokenizer_lib.NUM_SPECIAL,
    segment_L=row['segment'],
    order_L=row['order'],
    predicts=tuple(
      text if weight else ''
      for text, weight in zip(
        _spell(row['targets'], tokenizer), row['weights'], strict=True
      )
    ),
    weights_L=row['weights'],
  )
  if 'encoder_tokens' not in row:
    return (last,)
  first = Stack(
    name='encoder',
    reads=_spell(row['encoder_tokens'], tokenizer),
    special_L=row['encoder_tokens'] < tokenizer_lib.NUM_SPECIAL,
    segment_L=row['encoder_segment'],
  )
  return (first, last)


def count(
  segments: Sequence[np.ndarray], weights_L: np.ndarray
) -> dict[str, int | float]:
  """Counts positions, tokens read, tokens predicted, and their loss weight.

  Args:
    segments: `segment_L` of each stack.
    weights_L: loss weights of the last stack.
  """
  return {
    'positions': sum(len(segment_L) for segment_L in segments),
    'read': sum(int((segment_L > 0).sum()) for segment_L in segments),
    'predicted': int((weights_L > 0).sum()),
    'weight': float(weights_L.sum(dtype=np.float64)),
  }


def segments(segment_L: np.ndarray) -> Iterator[tuple[int, slice]]:
  """Yields the number and the positions of each segment, without padding."""
  for number in range(1, int(segment_L.max(initial=0)) + 1):
    (places,) = np.nonzero(segment_L == number)
    if len(places):
      yield number, slice(int(places[0]), int(places[-1]) + 1)


def _weight(weight: float) -> str:
  return f'{weight:,.0f}' if weight >= 1000 else f'{weight:.4g}'


def _spell(
  ids_L: np.ndarray, tokenizer: tokenizer_lib.Tokenizer
) -> tuple[str, ...]:
  return tuple(token_text.spell(id_, tokenizer) for id_ in ids_L.tolist())


def _mask(query: Stack, key: Stack) -> Mask:
  segments = query.segment_L[None], key.segment_L[None]
  if query is key:
    order_L = query.order_L
    if order_L is None:  # all see each other, as in an encoder
      order_L = np.zeros_like(query.segment_L)
    mask_1xLxM = attention.attention_mask(
      order_L[None], order_L[None], *segments
    )
  else:
    mask_1xLxM = attention.cross_mask(*segments)
  return Mask(query.name, key.name, np.asarray(mask_1xLxM[0]))
