"""A mixture of objectives: UL2's denoisers (Tay et al. 2022, section 3.1).

One component is drawn for each chunk of text. The token of its mode is
prepended to its inputs; otherwise its examples are those it has alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import errors, field, objectives, types
from lm.models import readout
from lm.objectives import cross_entropy, layout, mixture_components

WEIGHTINGS = ('tokens', 'terms')

FIELDS = field.section(
  'A mixture of objectives.',
  components=field.Field(
    None,
    "Tuples (share, mode or '', objective, its fields), such as "
    "((0.5, 'S', 'prefix', ()), (0.5, 'R', 'span', (('mean', 8.0),))).",
    kind=tuple,
    none="UL2's seven",
  ),
  weighting=field.Field(
    'tokens',
    'The loss: one mean over all tokens, or one mean a component (terms), '
    'which counts 0 in a batch without it.',
    choices=WEIGHTINGS,
  ),
)


# Maximum share of each side of an encoder-decoder that an example of one of
# several components may fill. Some components mostly fill the encoder, others
# the decoder: with shorter chunks one of each fits a row, which halves padding.
_SHARE_OF_SIDE = 0.6

# Number of chunks whose sizes are drawn to estimate a component's share of each
# side.
_DRAWS = 64


def check(config):
  """Raises UserError unless each component can be part of this mixture."""
  for number, component in enumerate(mixture_components.read(config)):
    name, spec = component.objective, objectives.OBJECTIVES[component.objective]
    component.check_fields(number)
    allowed = ' or '.join(map(repr, spec.architectures))
    if not _shared_architectures(spec):
      raise mixture_components.component_error(
        number,
        f"objective '{name}' trains model.architecture={allowed}, on which "
        f'there are no mixtures; train it alone, and mix {_mixable()}',
      )
    if config.model.architecture not in spec.architectures:
      raise mixture_components.component_error(
        number,
        f"objective '{name}' trains model.architecture={allowed}, not "
        f"'{config.model.architecture}'; change one",
      )
    if spec.data == 'pairs':
      raise mixture_components.component_error(
        number,
        f"objective '{name}' is trained on pairs, and mixtures on text; train "
        f'it alone, and mix {_mixable()}',
      )
    try:
      spec.check(component.config(config))
    except errors.UserError as error:
      raise mixture_components.component_error(number, str(error)) from None


def _shared_architectures(spec: types.ObjectiveSpec) -> set[str]:
  return set(spec.architectures) & set(SPEC.architectures)


def _mixable() -> str:
  """Names of objectives that can be components, for messages."""
  *names, last = [
    name
    for name, spec in objectives.OBJECTIVES.items()
    if spec is not SPEC and spec.data != 'pairs' and _shared_architectures(spec)
  ]
  return f'{", ".join(names)} or {last}'


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective from `objective.mixture`.

  A chunk longer than the raw length of its component is cut into consecutive
  pieces, each with its own example: all text is read, and the components'
  shares are shares of text.
  """
  parts, capacity = _parts(config, tokenizer)
  shares = [part.share for part in parts]
  edges = np.cumsum(shares)[:-1] / np.sum(shares)
  draw = functools.partial(_pieces, parts=parts, edges=edges)
  causal = {part.objective.attention for part in parts} == {'causal'}
  scored, scorer = _scored(parts)
  strategies = {name for part in parts for name in part.objective.generates}
  fillings = [part.filling for part in parts if part.objective.filling]
  return types.Objective(
    raw_length=max(part.raw_length for part in parts),
    capacity=capacity,
    sizes=functools.partial(_sizes, draw=draw),
    corrupt=functools.partial(_corrupt, draw=draw),
    **_loss(config, parts),
    attention='causal' if causal else 'prefix',
    arrays=('component',),
    scorer=scorer,
    continuation=scored and scored.continuation,
    scored_at_once=scored and scored.objective.scored_at_once,
    filling=fillings[0] if fillings else None,
    generates=tuple(
      name for name in ('continuation', 'spans') if name in strategies
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """A component with its objective.

  index: its index in the mixture.
  share: see `mixture_components.Component`.
  name: name of its loss term.
  mode: id of the mode's token; None without one.
  causal: whether all components of the mixture are causal.
  raw_length: tokens of its longest chunk in this mixture.
  """

  index: int
  share: float
  name: str
  mode: int | None
  objective: types.Objective
  causal: bool
  raw_length: int = 0

  def size(self, size: types.Size) -> types.Size:
    """Size of an example with the mode's token."""
    more = self.mode is not None
    if size.encoder_tokens:
      return dataclasses.replace(
        size, encoder_tokens=size.encoder_tokens + more
      )
    return dataclasses.replace(size, tokens=size.tokens + more)

  def example(self, example: types.Example) -> types.Example:
    """Prepends the mode's token and sets `component_L`."""
    if self.mode is not None:
      example = layout.prepend(example, self.mode, causal=self.causal)
    component_L = np.full(len(example.tokens_L), self.index, np.int32)
    return dataclasses.replace(example, component_L=component_L)

  def upper_bound(self, n: int) -> types.Size:
    """See `types.Objective`; the mode's token is included."""
    return self.size(self.objective.upper_bound(n))

  def continuation(
    self, context: np.ndarray, scored: np.ndarray
  ) -> types.Example:
    return self.example(self.objective.continuation(context, scored))

  def filling(self, inputs: np.ndarray, targets: np.ndarray) -> types.Example:
    return self.example(self.objective.filling(inputs, targets))


def _parts(config, tokenizer) -> tuple[list[_Part], types.Size]:
  """The components with their raw lengths, and a row's capacity.

  Raises:
    UserError: a component's loss cannot be pooled, or rows are too short for
      it.
  """
  found = mixture_components.read(config)
  made = [
    objectives.OBJECTIVES[c.objective].make(c.config(config), tokenizer)
    for c in found
  ]
  causal = {objective.attention for objective in made} == {'causal'}
  drafts = [
    _Part(i, c.share, name, mixture_components.MODES[c.mode], objective, causal)
    for i, (c, name, objective) in enumerate(
      zip(found, mixture_components.names(found), made, strict=True)
    )
  ]
  for draft, component in zip(drafts, found, strict=True):
    _check_pools(draft, component.objective)
  capacity = _capacity(drafts, config.data.sequence_length)
  if len(drafts) == 1:  # A single component has the chunks it has alone.
    raw_lengths = [drafts[0].objective.raw_length]
  else:
    share = _SHARE_OF_SIDE if capacity.encoder_tokens else 1.0
    limits = (
      int(share * capacity.tokens),
      int(share * capacity.encoder_tokens),
    )
    raw_lengths = [_longest(draft.upper_bound, *limits) for draft in drafts]
  parts = [
    dataclasses.replace(draft, raw_length=raw_length)
    for draft, raw_length in zip(drafts, raw_lengths, strict=True)
  ]
  for part in parts:
    _check_length(part, config.data.sequence_length)
  if capacity.encoder_tokens:
    return parts, capacity
  predictions = max(
    part.upper_bound(n).predictions
    for part in parts
    for n in range(1, part.raw_length + 1)
  )
  predictions = layout.predictions(predictions, capacity.tokens)
  return parts, dataclasses.replace(capacity, predictions=predictions)


def _check_pools(part: _Part, name: str):
  if part.objective.upper_bound is None:
    raise mixture_components.component_error(
      part.index,
      f"objective '{name}' states no upper bound of its sizes, which the rows "
      f'of a mixture need; train it alone, and mix {_mixable()}',
    )
  if part.objective.loss is not None:
    raise mixture_components.component_error(
      part.index,
      f"objective '{name}' has a loss of its own, which cannot be pooled with "
      f'others; train it alone, and mix {_mixable()}',
    )


def _check_length(part: _Part, length: int):
  if not part.raw_length:
    raise errors.UserError(
      f'data.sequence_length={length} has no room for a token of '
      f'objective.mixture.components[{part.index}]; raise it'
    )
  try:
    part.objective.check_length(part.raw_length)
  except errors.UserError as error:
    raise mixture_components.component_error(part.index, str(error)) from None


def _capacity(parts: Sequence[_Part], length: int) -> types.Size:
  """A row's capacity, its sides in proportion to the components' use of them.

  A single component has the capacity that it has without a mixture.
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
    # Positions on each side per token of text.
    taken_2 += part.share * np.sum(sides, axis=0) / (_DRAWS * n)
  encoder_tokens = round(length * taken_2[0] / taken_2.sum())
  return types.Size(length - encoder_tokens, encoder_tokens)


def _longest(
  upper_bound: Callable[[int], types.Size], tokens: int, encoder_tokens: int
) -> int:
  """Tokens of the longest chunk such that it and all shorter ones fit."""
  n = 0
  while True:
    size = upper_bound(n + 1)
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
  """Draws a component; yields the chunk's pieces with a generator for each."""
  # A single component makes the same draws as without a mixture.
  index = np.searchsorted(edges, rng.random(), 'right') if len(edges) else 0
  part = parts[index]
  starts = range(0, n, part.raw_length)
  generators = [rng]
  if len(starts) > 1:
    # `sizes` and `corrupt` of a piece make different numbers of draws.
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


def _corrupt(record: types.Record, rng, *, draw) -> Sequence[types.Example]:
  examples = []
  for part, place, generator in draw(len(record.ids_L), rng):
    word_L = record.word_L[place]
    piece = types.Record(record.ids_L[place], word_L - word_L[0], record.place)
    found = part.objective.corrupt(piece, generator)
    examples += [part.example(example) for example in found]
  return examples


def _scored(parts: Sequence[_Part]) -> tuple[_Part | None, str]:
  """The component that scores text, and its scoring method."""
  if len(parts) == 1 and parts[0].mode is None:
    alone, scorer = parts[0], parts[0].objective.scorer
    return (None if scorer == 'none' else alone), scorer
  for scorer in ('conditional', 'exact', 'blocks'):
    for part in parts:
      if part.objective.scorer == scorer:
        # After a mode's token, text is not scored from its start.
        return part, 'conditional' if scorer == 'exact' else scorer
  return None, 'none'


def _loss(config, parts: Sequence[_Part]) -> dict[str, Any]:
  """Fields of the Objective for the weighting; {} pools all tokens."""
  if config.objective.mixture.weighting == 'tokens':
    return {}
  factors = cross_entropy.extras(config)
  total = sum(part.share for part in parts)
  shares = {part.name: part.share / total for part in parts}
  loss = functools.partial(
    _terms,
    names=tuple(shares),
    chunk=config.train.loss_chunk,
    factors=factors,
  )
  return {'loss': loss, 'coefficients': {**shares, **factors}}


def _terms(
  model: types.Model,
  params: types.Params,
  batch: types.Batch,
  key: jax.Array | None,
  train: bool,
  *,
  names: Sequence[str],
  chunk: int,
  factors: Mapping[str, float],
) -> types.Terms:
  """One term per component, over its tokens; extras are over all tokens."""
  hidden_BxLxD = model.hidden(params, batch, key=key, train=train)
  hidden_BxPxD, targets_BxP, weights_BxP = readout.read_out(hidden_BxLxD, batch)
  component_BxP = readout.at_predictions(batch.component_BxL, batch)
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


SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder_decoder', 'decoder'),
  attention=('prefix', 'causal'),
  data='text',
  fields=FIELDS,
  reads=('objective.inputs',),
  unread=mixture_components.why_unread,
  check=check,
)
