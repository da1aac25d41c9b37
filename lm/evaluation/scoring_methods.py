"""What a model is asked about a window of text, by each way of scoring.

A window (context, scored ids) becomes queries: Examples in the format that the
objective trains, each with weights where some of the scored ids are predicted.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lm import errors, types
from lm.data import tokenizer
from lm.evaluation import passages
from lm.objectives import diffusion, masked


@dataclasses.dataclass(frozen=True)
class Query:
  """A question about some of a window's scored ids.

  example: predicts them where it has weights, in their order.
  places_k: which of the scored ids these are.
  factor: of their bits in those of the window.
  """

  example: types.Example
  places_k: np.ndarray
  factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Kind:
  """A way of scoring.

  queries(objective, context, scored, samples, rng): those of a window.
  meaning: for people.
  chain: one query a window, in which each id has bits of its own, given those
    before it; by the chain rule they add up to the bits of the text.
  documents: whole documents are scored, too.
  sampled: the queries of a window are samples, else, but of `chain`, one an id.
  """

  queries: Callable[..., Sequence[Query]]
  meaning: str
  chain: bool = False
  documents: bool = False
  sampled: bool = False

  def count(self, n: int, samples: int) -> int:
    """Queries of a window with n scored ids."""
    return 1 if self.chain else samples if self.sampled else n


def continuation(objective, context, scored, samples, rng) -> list[Query]:
  """All scored ids at once, as what continues the context."""
  del samples, rng
  example = objective.continuation(context, scored)
  return [Query(example, np.arange(len(scored)))]


def one_by_one(objective, context, scored, samples, rng) -> list[Query]:
  """Each scored id alone behind a mask, all else of the window in sight.

  The pseudo-log-likelihood of Salazar et al. 2020, equation 1: the products of
  such conditionals do not sum to one over texts.
  """
  del objective, samples, rng
  return [
    Query(masked.one_masked(context, scored, place), np.array([place]))
    for place in range(len(scored))
  ]


def sampled_bound(objective, context, scored, samples, rng) -> list[Query]:
  """The masked-diffusion bound as LLaDA has it (Nie et al. 2025, equation 6).

  -log p(scored | context) <= E over l uniform in 1..L and a uniform set of l
  scored ids of L / l x the negative log-likelihood of that set, each given the
  context and the ids outside of it.
  """
  del objective
  n = len(scored)
  queries = []
  for noise_n in noises(n, samples, rng):
    (places_k,) = np.nonzero(noise_n)
    queries.append(
      Query(
        diffusion.noised(context, scored, noise_n),
        places_k,
        factor=n / (len(places_k) * samples),
      )
    )
  return queries


def noises(
  n: int, samples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Sets of ids to mask, bool [n]: their sizes are stratified over 1..n."""
  for sample in range(samples):
    size = int(n * (sample + rng.random()) / samples) + 1
    noise_n = np.zeros(n, bool)
    noise_n[rng.permutation(n)[: min(size, n)]] = True
    yield noise_n


# What an Objective names as its scorer; 'none' is no entry.
KINDS = {
  'exact': Kind(continuation, 'left to right', chain=True, documents=True),
  'conditional': Kind(
    continuation, 'what follows, given what is before, as trained', chain=True
  ),
  'blocks': Kind(
    continuation,
    'in blocks of a mean span, each the last span, given all before it',
    chain=True,
  ),
  'left_to_right': Kind(
    continuation,
    'each token at a mask with nothing to its right, which was not trained',
    chain=True,
  ),
  'bound': Kind(
    sampled_bound, 'an upper bound, estimated from samples', sampled=True
  ),
}
PSEUDO = Kind(one_by_one, 'not a likelihood, each token given all others')
NONE = 'none'


def has_pseudo(objective: types.Objective) -> bool:
  """Whether tokens are predicted with what is on both sides in sight."""
  return objective.attention == 'bidirectional'


def room(kind: Kind, objective: types.Objective) -> passages.Room:
  """What fits a window, from what a query of one id given one id takes.

  Raises:
    UserError: nothing does.
  """
  one = np.array([tokenizer.FIRST_BYTE], np.int32)
  rng = np.random.default_rng(0)
  example = kind.queries(objective, one, one, 1, rng)[0].example
  capacity = objective.capacity
  if example.encoder_tokens_M is None:
    both = context = scored = capacity.tokens - len(example.tokens_L) + 2
  else:
    context = capacity.encoder_tokens - len(example.encoder_tokens_M) + 1
    scored = capacity.tokens - len(example.tokens_L) + 1
    both = context + scored
  if min(context, scored) < 1:
    raise errors.UserError(
      f'data.sequence_length gives rows of {capacity.positions} positions, in '
      'which no text can be scored; give a larger one'
    )
  if kind.chain and objective.scored_at_once:
    scored = min(scored, objective.scored_at_once)
  return passages.Room(context, scored, both)


def check(query: Query, scored_n: np.ndarray):
  """Raises ValueError unless an objective's Example predicts what is asked."""
  example = query.example
  targets_k = example.targets_L[example.weights_L > 0]
  if not np.array_equal(targets_k, scored_n[query.places_k]):
    raise ValueError(
      f'an example that is to predict the ids {scored_n[query.places_k]} '
      f'predicts {targets_k}'
    )
