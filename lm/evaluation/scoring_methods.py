"""Scoring methods: the examples whose predictions score a window of text.

A window (context, scored ids) becomes queries: Examples in the format that the
objective trains, with weights where some of the scored ids are predicted.
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
  """An Example that predicts some of the scored ids of a window.

  example: predicts these ids, in order, where its weights are not 0.
  places_k: their indices among the scored ids.
  factor: weight of their bits in the bits of the window.
  """

  example: types.Example
  places_k: np.ndarray
  factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Method:
  """A scoring method.

  queries(objective, context, scored, samples, rng) -> the queries of a window.
  meaning: description for reports.
  chain: whether a window has one query, in which each id is predicted given the
    ids before it; by the chain rule, their bits sum to the bits of the text.
  documents: whether whole documents are scored, too.
  sampled: whether the queries of a window are samples; otherwise, unless
    `chain`, there is one query per scored id.
  """

  queries: Callable[..., Sequence[Query]]
  meaning: str
  chain: bool = False
  documents: bool = False
  sampled: bool = False

  def count(self, n: int, samples: int) -> int:
    """Number of queries of a window with n scored ids."""
    return 1 if self.chain else samples if self.sampled else n


def continuation(objective, context, scored, samples, rng) -> list[Query]:
  """All scored ids in one query, as the continuation of the context."""
  del samples, rng
  example = objective.continuation(context, scored)
  return [Query(example, np.arange(len(scored)))]


def one_by_one(objective, context, scored, samples, rng) -> list[Query]:
  """Each scored id alone masked, with the rest of the window visible.

  The pseudo-log-likelihood of Salazar et al. 2020, equation 1: the products of
  such conditionals do not sum to one over texts.
  """
  del objective, samples, rng
  return [
    Query(masked.one_masked(context, scored, place), np.array([place]))
    for place in range(len(scored))
  ]


def sampled_bound(objective, context, scored, samples, rng) -> list[Query]:
  """The masked-diffusion bound of LLaDA (Nie et al. 2025, equation 6).

  -log p(scored | context) <= E over l uniform in 1..L and a uniform set of l
  scored ids of L / l x the negative log-likelihood of that set, each id given
  the context and the scored ids outside the set.
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
  """Random sets of ids to mask, bool [n], of sizes stratified over 1..n."""
  for sample in range(samples):
    size = int(n * (sample + rng.random()) / samples) + 1
    noise_n = np.zeros(n, bool)
    noise_n[rng.permutation(n)[: min(size, n)]] = True
    yield noise_n


# Values of `Objective.scorer`, except 'none'.
METHODS = {
  'exact': Method(continuation, 'left to right', chain=True, documents=True),
  'conditional': Method(
    continuation, 'the continuation given the context, as trained', chain=True
  ),
  'blocks': Method(
    continuation,
    'in blocks of the mean span length, each given all text before it',
    chain=True,
  ),
  'left_to_right': Method(
    continuation,
    'each token at a mask with nothing to its right, a format not trained',
    chain=True,
  ),
  'bound': Method(
    sampled_bound, 'an upper bound, estimated from samples', sampled=True
  ),
}
PSEUDO = Method(one_by_one, 'not a likelihood, each token given all others')
NONE = 'none'


def has_pseudo(objective: types.Objective) -> bool:
  """Whether tokens are predicted from the context on both sides."""
  return objective.attention == 'bidirectional'


def limits(method: Method, objective: types.Objective) -> passages.Limits:
  """Limits of a window, derived from the size of a query of one id given one.

  Raises:
    UserError: rows are too short for any window.
  """
  one = np.array([tokenizer.FIRST_BYTE], np.int32)
  rng = np.random.default_rng(0)
  example = method.queries(objective, one, one, 1, rng)[0].example
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
  if method.chain and objective.scored_at_once:
    scored = min(scored, objective.scored_at_once)
  return passages.Limits(context, scored, both)


def check(query: Query, scored_n: np.ndarray):
  """Raises ValueError unless the Example predicts the ids of its query."""
  example = query.example
  targets_k = example.targets_L[example.weights_L > 0]
  if not np.array_equal(targets_k, scored_n[query.places_k]):
    raise ValueError(
      f'the example is to predict the ids {scored_n[query.places_k]}, but '
      f'predicts {targets_k}'
    )
