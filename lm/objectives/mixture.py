"""A mixture of objectives: UL2's denoisers (Tay et al. 2022, section 3.1).

For each chunk of text one component is drawn. A token of its mode is put at the
front of what it reads; else its examples are what they are without a mixture.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm import errors, objectives, types
from lm.models import base as models_base
from lm.objectives import (
  base,
  cross_entropy,
  layout,
  mixture_components,
  span,
  token_loss,
)

WEIGHTINGS = ('tokens', 'terms')


# Objectives that can be components, for messages.
_MIXABLE = 'causal, prefix or span'
# Of either side of an encoder-decoder, what one of several components' examples
# may take. Some fill the encoder and some the decoder: with shorter chunks one
# of each fits a row, which has half as much padding.
_PART = 0.6

# Chunks whose sizes are drawn to learn how much of each side a component takes.
_DRAWS = 64


def check(config):
  """Raises UserError unless the components can be trained together."""
  for number, component in enumerate(mixture_components.read(config)):
    name = component.objective
    allowed = objectives.ARCHITECTURES[name]
    if not set(allowed) & set(objectives.ARCHITECTURES['mixture']):
      raise mixture_components.mistake(
        number,
        f"objective '{name}' trains model.architecture={_either(allowed)}, on "
        f'which there are no mixtures; train it alone, and mix {_MIXABLE}',
      )
    if config.model.architecture not in allowed:
      raise mixture_components.mistake(
        number,
        f"objective '{name}' trains model.architecture={_either(allowed)}, not "
        f"'{config.model.architecture}'; change one",
      )
    objective = objectives.OBJECTIVES[name](component.config(config), None)
    if objective.pairs:
      raise mixture_components.mistake(
        number,
        f"objective '{name}' is trained on pairs, and mixtures on text; train "
        f'it alone, and mix {_MIXABLE}',
      )
    if objective.most is None or not token_loss.pools(objective.loss):
      raise mixture_components.mistake(
        number,
        f"objective '{name}' has a loss of its own, which cannot be pooled "
        f'with others; train it alone, and mix {_MIXABLE}',
      )
  found = zip(
    mixture_components.read(config), _parts(config, None)[0], strict=True
  )
  for number, (component, part) in enumerate(found):
    if not part.raw_length:
      raise errors.UserError(
        f'data.sequence_length={config.data.sequence_length} has no room for a '
        f'token of objective.mixture.components[{number}]; raise it'
      )
    if component.objective == 'span':
      cfg = component.config(config).objective.span
      try:
        span.check_sentinels(cfg, part.raw_length, config.data.sequence_length)
      except errors.UserError as error:
        raise mixture_components.mistake(number, str(error)) from None


def _either(names: Sequence[str]) -> str:
  return ' or '.join(map(repr, names))


def make(config, tokenizer=None) -> base.Objective:
  """The objective; `objective.mixture` has the components and the weighting.

  A chunk longer than its component's own raw length is cut into consecutive
  pieces, each an example of its own: all text is read, and shares are of it.
  """
  parts, capacity = _parts(config, tokenizer)
  shares = [part.share for part in parts]
  edges = np.cumsum(shares)[:-1] / np.sum(shares)
  draw = functools.partial(_pieces, parts=parts, edges=edges)
  causal = {part.objective.attention for part in parts} == {'causal'}
  scored, scorer = _scored(parts)
  loss, coefficients = _loss(config, parts)
  kinds = {kind for part in parts for kind in part.objective.generates}
  fillings = [part.filling for part in parts if part.objective.filling]
  return base.Objective(
    raw_length=max(part.raw_length for part in parts),
    capacity=capacity,
    sizes=functools.partial(_sizes, draw=draw),
    corrupt=functools.partial(_corrupt, draw=draw),
    loss=loss,
    coefficients=coefficients,
    attention='causal' if causal else 'prefix',
    scorer=scorer,
    continuation=scored and scored.continuation,
    continued=scored and scored.objective.continued,
    filling=fillings[0] if fillings else None,
    generates=tuple(k for k in ('continuation', 'spans') if k in kinds),
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """A component with its objective, as the mixture uses it.

  index: in the mixture. causal: whether all of the mixture is.
  """

  index: int
  share: float
  name: str
  mode: int | None
  objective: base.Objective
  causal: bool
  raw_length: int = 0

  def size(self, size: types.Size) -> types.Size:
    """What an example takes with the mode in front of it."""
    more = self.mode is not None
    if size.encoder_tokens:
      return dataclasses.replace(
        size, encoder_tokens=size.encoder_tokens + more
      )
    return dataclasses.replace(size, tokens=size.tokens + more)

  def example(self, example: types.Example) -> types.Example:
    """An example with the mode in front of it."""
    if self.mode is not None:
      example = layout.lead(example, self.mode, causal=self.causal)
    return dataclasses.replace(example, component=self.index)

  def most(self, n: int) -> types.Size:
    """What a chunk of n tokens takes at most, mode included."""
    return self.size(self.objective.most(n))

  def continuation(
    self, context: np.ndarray, scored: np.ndarray
  ) -> types.Example:
    return self.example(self.objective.continuation(context, scored))

  def filling(self, inputs: np.ndarray, targets: np.ndarray) -> types.Example:
    return self.example(self.objective.filling(inputs, targets))


def _parts(config, tokenizer) -> tuple[list[_Part], types.Size]:
  """The components, each with its raw length, and a row's room."""
  found = mixture_components.read(config)
  made = [
    objectives.OBJECTIVES[c.objective](c.config(config), tokenizer)
    for c in found
  ]
  causal = {objective.attention for objective in made} == {'causal'}
  drafts = [
    _Part(i, c.share, name, mixture_components.MODES[c.mode], objective, causal)
    for i, (c, name, objective) in enumerate(
      zip(found, mixture_components.names(found), made, strict=True)
    )
  ]
  room = _room(drafts, config.data.sequence_length)
  if len(drafts) == 1:  # As it is without a mixture.
    raw_lengths = [drafts[0].objective.raw_length]
  else:
    share = _PART if room.encoder_tokens else 1.0
    tokens, encoder_tokens = room.tokens, room.encoder_tokens
    raw_lengths = [
      _longest(draft.most, int(share * tokens), int(share * encoder_tokens))
      for draft in drafts
    ]
  parts = [
    dataclasses.replace(draft, raw_length=raw_length)
    for draft, raw_length in zip(drafts, raw_lengths, strict=True)
  ]
  if room.encoder_tokens:
    return parts, room
  predictions = max(
    part.most(n).predictions
    for part in parts
    for n in range(1, part.raw_length + 1)
  )
  predictions = layout.predictions(predictions, room.tokens)
  return parts, dataclasses.replace(room, predictions=predictions)


def _room(parts: Sequence[_Part], length: int) -> types.Size:
  """A row's two sides, in the proportion in which the components take them.

  A component alone has the sides that it has without a mixture.
  """
  if not parts[0].objective.capacity.encoder_tokens:
    return types.Size(tokens=length)
  if len(parts) == 1:
    return dataclasses.replace(
      parts[0].size(parts[0].objective.capacity), predictions=0
    )
  taken_2 = np.zeros(2)
  for part in parts:
    n, rng = part.objective.raw_length, np.random.default_rng(0)
    drawn = [part.objective.sizes(n, rng) for _ in range(_DRAWS)]
    sizes = [part.size(size) for found in drawn for size in found]
    sides = [(size.encoder_tokens, size.tokens) for size in sizes]
    # Of a token of text.
    taken_2 += part.share * np.sum(sides, axis=0) / (_DRAWS * n)
  encoder_tokens = round(length * taken_2[0] / taken_2.sum())
  return types.Size(length - encoder_tokens, encoder_tokens)


def _longest(
  most: Callable[[int], types.Size], tokens: int, encoder_tokens: int
) -> int:
  """The longest chunk that fits both sides, as do all that are shorter."""
  n = 0
  while True:
    size = most(n + 1)
    if size.tokens > tokens or size.encoder_tokens > encoder_tokens:
      return n
    n += 1


def _pieces(
  n: int,
  rng: np.random.Generator,
  *,
  parts: Sequence[_Part],
  edges: np.ndarray,
) -> Iterator[tuple[_Part, slice, np.random.Generator]]:
  """Draws a component; the pieces of a chunk, and a generator for each."""
  # One component alone draws what it draws without a mixture.
  index = np.searchsorted(edges, rng.random(), 'right') if len(edges) else 0
  part = parts[index]
  starts = range(0, n, part.raw_length)
  generators = [rng]
  if len(starts) > 1:
    # Sizes and examples take numbers of draws that differ.
    keys = rng.integers(2**63, size=len(starts)).tolist()
    generators = [np.random.Generator(np.random.Philox(key=k)) for k in keys]
  for start, generator in zip(starts, generators, strict=True):
    yield part, slice(start, min(start + part.raw_length, n)), generator


def _sizes(n, rng, *, draw) -> Sequence[types.Size]:
  return [
    part.size(size)
    for part, place, generator in draw(n, rng)
    for size in part.objective.sizes(place.stop - place.start, generator)
  ]


def _corrupt(record: base.Record, rng, *, draw) -> Sequence[types.Example]:
  examples = []
  for part, place, generator in draw(len(record.ids_L), rng):
    word_L = record.word_L[place]
    piece = base.Record(record.ids_L[place], word_L - word_L[0], record.place)
    found = part.objective.corrupt(piece, generator)
    examples += [part.example(example) for example in found]
  return examples


def _scored(parts: Sequence[_Part]) -> tuple[_Part | None, str]:
  """The component that text is scored with, and how."""
  if len(parts) == 1 and parts[0].mode is None:
    return parts[0], parts[0].objective.scorer
  for kind in ('conditional', 'exact', 'blocks'):
    for part in parts:
      if part.objective.scorer == kind:
        # Behind a mode no text is scored from its start.
        return part, 'conditional' if kind == 'exact' else kind
  return None, 'none'


def _loss(config, parts: Sequence[_Part]):
  """The loss and the coefficients of the weighting."""
  if config.objective.mixture.weighting == 'tokens':
    return (
      token_loss.make(config, 'mixture'),
      token_loss.coefficients(config, 'mixture'),
    )
  factors = cross_entropy.extras(config)
  total = sum(part.share for part in parts)
  shares = {part.name: part.share / total for part in parts}
  loss = functools.partial(
    _terms,
    names=tuple(shares),
    chunk=config.train.loss_chunk,
    factors=factors,
  )
  return loss, {**shares, **factors}


def _terms(
  model: models_base.Model,
  params: models_base.Params,
  batch: types.Batch,
  key: jax.Array | None,
  train: bool,
  *,
  names: Sequence[str],
  chunk: int,
  factors: Mapping[str, float],
) -> cross_entropy.Terms:
  """A term a component, of its own tokens; the extras are of all tokens."""
  hidden_BxLxD = model.hidden(params, batch, key=key, train=train)
  hidden_BxPxD, targets_BxP, weights_BxP = token_loss.read_out(
    hidden_BxLxD, batch
  )
  component_BxP = token_loss.at_predictions(batch.component_BxL, batch)
  nll_BxP, *extras = cross_entropy.token_values(
    functools.partial(model.logits, params),
    hidden_BxPxD,
    targets_BxP,
    chunk=chunk,
    factors=factors if train else None,
  )
  terms = {}
  for index, name in enumerate(names):
    own_BxP = weights_BxP * (component_BxP == index)
    terms[name] = (jnp.sum(nll_BxP * own_BxP), jnp.sum(own_BxP))
  for name, value_BxP in zip(factors, extras, strict=False):
    terms[name] = (jnp.sum(value_BxP * weights_BxP), jnp.sum(weights_BxP))
  return terms
