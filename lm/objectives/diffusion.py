"""Masked diffusion (Nie et al. 2025, LLaDA; Sahoo et al. 2024, MDLM).

A share of the tokens of a text, drawn from 0 to 1 for each chunk, is masked and
predicted from the others. With the weights used here, the expected loss is an
upper bound of the negative log-likelihood, and equal to the mean of -log p over
all orders in which the tokens could be generated one by one (Ou et al. 2024).

The loss term is the sum of the weighted losses over the number of maskable
tokens, masked or not, and not over the sum of the weights. With `exact` the two
are equal; with `bernoulli` they are equal only on average, and dividing by the
drawn sum would be biased, and no bound. Label smoothing and z-loss have the
weights of the cross-entropy: a token's weight has the mean 1 over draws, so
their factors mean the same as for other objectives.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from lm import field, types
from lm.objectives import masking, token_loss

Estimator = Callable[
  [int, int, np.random.Generator, float], tuple[np.ndarray, float]
]

# The golden ratio. Any run of consecutive multiples of it, modulo 1, is spread
# evenly over [0, 1), since it is badly approximated by fractions.
_GOLDEN = (5**0.5 - 1) / 2


def make(config, tokenizer=None) -> types.Objective:
  """Builds the objective from `objective.diffusion`."""
  del tokenizer
  cfg, length = config.objective.diffusion, config.data.sequence_length
  return types.Objective(
    raw_length=length - 1,  # BOS
    capacity=types.Size(tokens=length),
    sizes=lambda n, rng: [types.Size(tokens=n + 1, predictions=n)],
    corrupt=functools.partial(
      corrupt, estimator=ESTIMATORS[cfg.estimator], epsilon=cfg.epsilon
    ),
    loss=token_loss.make(config, 'diffusion', normalizer=masking.text_tokens),
    coefficients=token_loss.coefficients(config, 'diffusion'),
    attention='bidirectional',
    scorer='bound',
    generates=('unmasking',),
  )


def corrupt(
  record: types.Record,
  rng: np.random.Generator,
  *,
  estimator: Estimator,
  epsilon: float,
) -> Sequence[types.Example]:
  """Masks some tokens, here 2 of 3 with the exact estimator:

  ids      [300 301 302 EOS]        a chunk that ends its document
  tokens   [BOS MASK 301 MASK EOS]
  targets  [BOS  300 301  302 EOS]
  weights  [  0  1.5   0  1.5   0]
  order    [  0    0   0    0   0]

  If no token can be masked, nothing is predicted.
  """
  maskable = masking.maskable(record.ids_L)
  if not len(maskable):
    return [masking.example(record.ids_L, maskable)]
  chosen, weight = estimator(len(maskable), record.place, rng, epsilon)
  return [masking.example(record.ids_L, maskable[chosen], weight=weight)]


def exact(
  total: int, place: int, rng: np.random.Generator, epsilon: float
) -> tuple[np.ndarray, float]:
  """Masks exactly l of L tokens, l uniform in 1, ..., L, with weights L / l.

  LLaDA's estimator for likelihoods (Nie et al. 2025, equation 6), which has
  less variance than `bernoulli`. The weights of a text add up to L.

  Args:
    total: L, the number of maskable tokens.

  Returns:
    The indices of the masked tokens, and the weight of each.
  """
  del place, epsilon
  masked = int(rng.integers(1, total + 1))
  return masking.subset(total, masked, rng), total / masked


def bernoulli(
  total: int, place: int, rng: np.random.Generator, epsilon: float
) -> tuple[np.ndarray, float]:
  """Masks each token with the probability t, with weights 1 / t.

  LLaDA's estimator for training (Nie et al. 2025, equation 3), and MDLM's with
  its linear schedule (Sahoo et al. 2024, equation 10); t is
  `time(place, epsilon)`. Arguments and results are those of `exact`.
  """
  t = time(place, epsilon)
  return np.flatnonzero(rng.random(total) < t), 1 / t


def time(place: int, epsilon: float) -> float:
  """t = epsilon + (1 - epsilon) u, with u spread evenly over adjacent places.

  Neighbours in an epoch's shuffled order mostly share a batch, whose loss
  varies less if t is spread evenly (antithetic sampling in MDLM's release, over
  a batch instead of neighbours). Here u is the fractional part of 1/2 + place x
  the golden ratio, which is even over any run of places, whichever batch they
  are in. Places count from a number that is drawn for each epoch from 2^20, see
  `packing.EpochPlan`: over epochs and seeds, the u of any one text is uniform
  to within 10^-5.

  Excluding t < epsilon bounds the weights. If more context lowers the loss, it
  raises the expected loss, by a share of at most epsilon.
  """
  return epsilon + (1 - epsilon) * ((0.5 + place * _GOLDEN) % 1.0)


ESTIMATORS: dict[str, Estimator] = {'exact': exact, 'bernoulli': bernoulli}


def noised(
  context: np.ndarray, scored: np.ndarray, masked: np.ndarray
) -> types.Example:
  """The Example in which some tokens of `scored` are masked, after a context.

  context [300], scored [301 302 303], masked [1 0 1]
  tokens   [BOS 300 MASK 302 MASK]
  targets  [BOS 300  301 302  303]
  weights  [  0   0    1   0    1]

  If l of the L tokens of `scored` are masked, with l uniform in 1, ..., L and
  the set of l tokens uniform, the expectation of L / l times the loss is a
  bound of the negative log-likelihood of `scored` given `context`.

  Args:
    masked: true or 1 for each token of `scored` that is masked.
  """
  ids_L = np.concatenate([context, scored])
  return masking.example(ids_L, len(context) + np.flatnonzero(masked))


FIELDS = field.section(
  'Masked diffusion.',
  estimator=field.Field(
    'exact',
    'exact (LLaDA): l is uniform in 1..L, l tokens are masked, and the weight '
    'is L / l. bernoulli (MDLM): each token is masked with probability t, and '
    'the weight is 1 / t.',
    choices=tuple(ESTIMATORS),
  ),
  epsilon=field.Field(
    1e-3,
    'Smallest t.',
    least=1e-6,
    most=0.5,
    read_with={'estimator': ('bernoulli',)},
  ),
)

SPEC = types.ObjectiveSpec(
  make=make,
  architectures=('encoder',),
  attention=('bidirectional',),
  fields=FIELDS,
  reads=('evaluate.bound_samples',),
)
