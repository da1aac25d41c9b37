"""Every scorer: proper where it says so, no special ids, no batch effects."""

import collections
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from helpers.scorers import (
  FORMATS,
  make_objective,
  two_sided_span,
)

from experiments import base as base_config
from lm import errors, models, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer
from lm.evaluation import (
  passages as passages_lib,
  scorer as scorer_lib,
  scoring_methods,
)
from lm.models import attention, readout
from lm.objectives import diffusion, layout
from lm.runtime import sharding

BOS, EOS, MASK = tokenizer.BOS, tokenizer.EOS, tokenizer.MASK
S0 = tokenizer.SENTINELS[0]
A, B, C = 300, 400, 500
CONTEXT = np.array([310, 320, 330], np.int32)


class Setting:
  """Untrained models of one set of parameters, and scorers compiled once."""

  def __init__(self, config):
    # In a single layer nothing would show what the context sees.
    config.model.num_layers = 2
    config.model.width = 16
    config.model.num_heads = 2
    self.config = config_lib.resolve(config)
    self.tokenizer = tokenizer.train('bytes', 528, [])
    self.allowed = self.tokenizer.allowed_ids(end=False)
    self.mesh = sharding.make_mesh(self.config, jax.devices()[:1])
    self.models = {
      attention: models.make(self.config, make_objective(name), self.mesh)
      for name, (attention, *_) in FORMATS.items()
    }
    params = self.models['causal'].init(jax.random.PRNGKey(0))
    # So that special ids, too, are likely, and distributions are not flat.
    self.params = jax.tree.map(lambda x: 3 * x, params)
    self.found = {}
    self.plain_log_probs = jax.jit(self._plain_log_probs)

  def _plain_log_probs(self, batch):
    """Log-probabilities of the allowed ids [L, V], without a scorer."""
    model = self.models['bidirectional']
    logits = model.logits(self.params, model.hidden(self.params, batch))
    return jax.nn.log_softmax(jnp.where(self.allowed, logits[0], -jnp.inf))

  def scorer(self, name, **settings):
    key = name, *settings.items()
    if key not in self.found:
      pseudo = name == 'pseudo'
      objective = make_objective('bound' if pseudo else name)
      self.found[key] = scorer_lib.Scorer(
        scoring_methods.PSEUDO if pseudo else scoring_methods.METHODS[name],
        objective,
        self.models[objective.attention],
        self.mesh,
        **{'batch_size': 8, **settings},
      )
    return self.found[key]

  def parts(self, name, passages, allowed=None, **settings):
    if allowed is None:
      allowed = self.allowed
    batches = self.scorer(name, **settings).batches(
      self.params, passages, allowed
    )
    return list(itertools.chain.from_iterable(batches))

  def bits(self, name, passages, allowed=None, **settings):
    """The bits of each passage."""
    bits = collections.Counter()
    for part in self.parts(name, passages, allowed, **settings):
      bits[id(part.passage)] += part.bits_n.sum()
    return np.array([bits[id(passage)] for passage in passages])


@pytest.fixture(scope='module')
def setting():
  config = base_config.get_config()
  config.data.tokenizer = 'bytes'
  config.data.vocab_size = 528
  config.data.sequence_length = 24
  config.evaluate.batch_size = 8
  return Setting(config)


def passage(context, scored):
  scored = np.array(scored, np.int32)
  return passages_lib.Passage(np.array(context, np.int32), scored, len(scored))


def random_passages(count, most, seed=0):
  rng = np.random.default_rng(seed)

  def ids(least):
    return rng.integers(270, 526, rng.integers(least, most))

  return [passage(ids(0), ids(1)) for _ in range(count)]


CHAIN = [
  name for name, method in scoring_methods.METHODS.items() if method.chain
]
ALL = [*scoring_methods.METHODS, 'pseudo']


@pytest.mark.parametrize('name', CHAIN)
@pytest.mark.parametrize('length', [1, 2, 3])
def test_probabilities_of_all_texts_sum_to_one(setting, name, length):
  """Over three pieces; of three tokens there are two blocks of two."""
  allowed = np.zeros(528, bool)
  allowed[[A, B, C]] = True
  texts = list(itertools.product([A, B, C], repeat=length))
  bits = setting.bits(name, [passage(CONTEXT, text) for text in texts], allowed)
  assert np.sum(2.0**-bits) == pytest.approx(1, abs=1e-5)
  assert bits.std() > 0.1


def test_of_some_texts_the_pseudo_likelihoods_do_not_sum_to_one(setting):
  allowed = np.zeros(528, bool)
  allowed[[A, B, C]] = True
  texts = itertools.product([A, B, C], repeat=3)
  bits = setting.bits(
    'pseudo', [passage(CONTEXT, text) for text in texts], allowed
  )
  assert abs(np.sum(2.0**-bits) - 1) > 1e-3


def test_conditional_with_nothing_given_is_exact(setting):
  passages = [
    dataclasses.replace(p, context=p.context[:0])
    for p in random_passages(5, 20)
  ]
  np.testing.assert_allclose(
    setting.bits('conditional', passages),
    setting.bits('exact', passages),
    rtol=1e-5,
  )
  # What is given is seen from both sides.
  given = random_passages(5, 12, seed=1)
  exact, conditional = (
    setting.bits(name, given) for name in ('exact', 'conditional')
  )
  assert np.abs(exact - conditional).max() > 1e-3


def model_bits(setting, context, scored, noise):
  """Bits of the noisy ids by the plain model, one row."""
  row = packing.pack(
    [diffusion.noised(context, scored, noise)], types.Size(tokens=24)
  )
  log_p_LxV = setting.plain_log_probs(packing.stack([row]))
  places = np.flatnonzero(row['weights'])
  return -np.asarray(log_p_LxV)[places, scored[noise]] / np.log(2)


def all_noises(n):
  """Every set of masked ids, each size as often as any other."""
  sets = [np.array(x, bool) for x in itertools.product([0, 1], repeat=n)][1:]
  most = math.lcm(*(math.comb(n, size) for size in range(1, n + 1)))
  return [
    noise
    for noise in sets
    for _ in range(most // math.comb(n, int(noise.sum())))
  ]


def enumerated_bound(setting, context, scored):
  n, every = len(scored), all_noises(len(scored))
  costs = {
    noise.tobytes(): model_bits(setting, context, scored, noise).sum()
    for noise in every
  }
  parts = [n / noise.sum() * costs[noise.tobytes()] for noise in every]
  return sum(parts) / len(every)


def test_the_bound_over_all_sets_is_the_sum_over_them(setting, monkeypatch):
  scored = np.array([A, B, C], np.int32)
  every = all_noises(3)
  monkeypatch.setattr(
    scoring_methods, 'noises', lambda n, samples, rng: all_noises(n)
  )
  [part] = setting.parts(
    'bound', [passage(CONTEXT, scored)], samples=len(every)
  )
  expected = enumerated_bound(setting, CONTEXT, scored)
  assert part.bits_n.sum() == pytest.approx(expected, rel=1e-5)


def test_the_sampled_bound_is_within_its_standard_error(setting):
  scored = np.array([A, B, C, 350, 450], np.int32)
  expected = enumerated_bound(setting, CONTEXT, scored)
  # Sixteen estimates: passages of one number each draw differently.
  passages = [passage(CONTEXT, scored) for _ in range(16)]
  parts = setting.parts('bound', passages, samples=16)
  bits = np.array([part.bits_n.sum() for part in parts])
  error = np.sqrt(np.mean([part.variance for part in parts]))
  assert 0 < np.std(bits) < 1.5 * error
  assert abs(bits.mean() - expected) < 3 * error / 4
  score = setting.scorer('bound', samples=16)(
    setting.params, passages, setting.allowed
  )
  assert score.bits == pytest.approx(bits.sum())
  total = np.sqrt(sum(part.variance for part in parts))
  assert score.standard_error() == pytest.approx(total / score.size)


def test_the_bound_of_one_token_is_exact(setting):
  """It is what `left_to_right` asks; each sample says the same."""
  one = [passage(CONTEXT, [A])]
  [part] = setting.parts('bound', one)
  expected = setting.bits('left_to_right', one)
  np.testing.assert_allclose(part.bits_n, expected, rtol=1e-5)
  assert part.variance < 1e-9


def test_sizes_of_noise_are_stratified():
  rng = np.random.default_rng(0)
  sizes = [int(noise.sum()) for noise in scoring_methods.noises(10, 40, rng)]
  assert collections.Counter(sizes) == dict.fromkeys(range(1, 11), 4)
  places = sum(noise for noise in scoring_methods.noises(4, 4000, rng))
  np.testing.assert_allclose(places / 4000, 2.5 / 4, atol=0.03)


def test_pseudo_sees_all_but_the_token_itself(setting):
  scored = np.array([A, B, C], np.int32)
  [part] = setting.parts('pseudo', [passage(CONTEXT, scored)])
  for place, noise in enumerate(np.eye(3, dtype=bool)):
    [expected] = model_bits(setting, CONTEXT, scored, noise)
    assert part.bits_n[place] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('name', ALL)
def test_figures_do_not_depend_on_batches_and_company(setting, name):
  """Some passages are longer than a row: each id is scored once all the same.

  Of the bound, samples depend on the number of the passage: order is kept.
  """
  passages = [*random_passages(6, 12), *random_passages(2, 70, seed=3)]
  settings = {'samples': 4}
  packed = setting.bits(name, passages, **settings)
  for other in ({'batch_size': 16}, {'one_a_row': True}):
    np.testing.assert_allclose(
      setting.bits(name, passages, **settings, **other), packed, rtol=1e-5
    )
  asked = []
  scorer = setting.scorer(name, **settings)
  score = scorer(
    setting.params, passages, setting.allowed, advance=asked.append
  )
  size = sum(len(p.scored) for p in passages)
  assert (score.size, score.tokens, score.passages) == (size, size, 8)
  lengths = [(len(p.context), len(p.scored)) for p in passages]
  assert sum(asked) == scorer.count(lengths)


@pytest.mark.parametrize('name', ALL)
def test_special_ids_have_no_probability(setting, name):
  kept = setting.parts(name, [passage(CONTEXT, [A, B])])
  mass = np.concatenate([part.special_mass_n for part in kept])
  assert (mass > 1e-3).all()
  assert (mass < 1).all()
  special = np.array([A, tokenizer.SEP], np.int32)
  with np.errstate(invalid='ignore'):  # differences of samples
    [*_, last] = setting.parts(name, [passage(CONTEXT, special)])
  assert last.bits_n[-1] == np.inf


def test_an_objective_that_predicts_something_else_is_reported(setting):
  shifted = lambda context, scored: layout.decoder(context, scored[::-1])
  scorer = scorer_lib.Scorer(
    scoring_methods.METHODS['exact'],
    make_objective('exact', continuation=shifted),
    setting.models['causal'],
    setting.mesh,
    batch_size=8,
  )
  with pytest.raises(ValueError, match='is to predict'):
    scorer(setting.params, [passage([], [A, B])], setting.allowed)


class NoSegments:
  """A causal model that reads a row as one text, as some kernels do."""

  def hidden(self, params, batch):
    read = jax.nn.one_hot(batch.tokens_BxL, 528) @ params
    return jnp.cumsum(read, axis=1)

  def logits(self, params, hidden):
    return hidden @ params.T

  def token_log_probs(self, params, batch, allowed_V=None, *, chunk=None):
    return readout.token_log_probs(
      self.hidden, self.logits, params, batch, allowed_V, chunk=chunk
    )


def test_rows_of_one_text_hold_one_query(setting):
  params = jax.random.normal(jax.random.PRNGKey(0), (528, 8))
  passages = random_passages(4, 6)

  def score(passages, *, crossing):
    config = ml_collections.ConfigDict(setting.config.to_dict())
    config.data.cross_document_attention = crossing
    scorer = scorer_lib.make(
      scoring_methods.METHODS['exact'],
      make_objective('exact'),
      NoSegments(),
      setting.mesh,
      config,
    )
    return scorer(params, passages, setting.allowed).bits

  alone = sum(score([p], crossing=False) for p in passages)
  assert score(passages, crossing=True) == pytest.approx(alone, rel=1e-5)
  assert abs(score(passages, crossing=False) - alone) > 1


class TwoSides:
  """A model whose decoder sees its own past, and all of its encoder side."""

  def hidden(self, params, batch):
    past = attention.attention_mask(
      batch.order_BxL, batch.order_BxL, batch.segment_BxL, batch.segment_BxL
    )
    across = batch.segment_BxL[:, :, None] == batch.encoder_segment_BxM[:, None]
    parts = (
      (past, batch.tokens_BxL, 1.0),
      (across, batch.encoder_tokens_BxM, 2.0),
    )
    return sum(
      factor
      * jnp.einsum('blm,bmd->bld', seen.astype(jnp.float32), params[tokens])
      / jnp.maximum(seen.sum(axis=-1, keepdims=True), 1)
      for seen, tokens, factor in parts
    )

  def logits(self, params, hidden):
    return hidden @ params.T

  def token_log_probs(self, params, batch, allowed_V=None, *, chunk=None):
    return readout.token_log_probs(
      self.hidden, self.logits, params, batch, allowed_V, chunk=chunk
    )


@pytest.mark.parametrize('continued', [2, None])
def test_an_encoder_reads_the_context(setting, continued):
  params = 2 * jax.random.normal(jax.random.PRNGKey(0), (528, 8))
  capacity = types.Size(tokens=8, encoder_tokens=16)
  objective = make_objective(
    'blocks', capacity, continuation=two_sided_span, scored_at_once=continued
  )

  def score(passages, allowed=setting.allowed, **settings):
    scorer = scorer_lib.Scorer(
      scoring_methods.METHODS['blocks'],
      objective,
      TwoSides(),
      setting.mesh,
      **{'batch_size': 4, **settings},
    )
    parts = itertools.chain.from_iterable(
      scorer.batches(params, passages, allowed)
    )
    return np.array([part.bits_n.sum() for part in parts])

  passages = [*random_passages(6, 5), *random_passages(2, 40, seed=3)]
  packed = score(passages)
  np.testing.assert_allclose(score(passages, one_a_row=True), packed, rtol=1e-4)
  other = dataclasses.replace(passages[-1], context=CONTEXT)
  assert abs(score([other])[0] - score(passages[-1:])[0]) > 1e-3
  allowed = np.zeros(528, bool)
  allowed[[A, B, C]] = True
  texts = itertools.product([A, B, C], repeat=2)
  bits = score([passage(CONTEXT, text) for text in texts], allowed)
  assert np.sum(2.0**-bits) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
  ('name', 'pair', 'capacity', 'expected'),
  [
    ('exact', None, (24, 0), (24, 24, 24)),
    ('left_to_right', None, (24, 0), (23, 1, 23)),
    ('bound', None, (24, 0), (23, 23, 23)),
    # Two sentinels and the end.
    ('blocks', None, (24, 0), (21, 2, 21)),
    # BOS and the sentinel; the sentinel and the end.
    ('blocks', two_sided_span, (8, 16), (14, 2, 20)),
    ('conditional', layout.encoder_decoder, (8, 16), (15, 8, 23)),
  ],
)
def test_room_is_what_fits_an_example(name, pair, capacity, expected):
  capacity = types.Size(*capacity)
  changes = {'continuation': pair} if pair else {}
  objective = make_objective(name, capacity, **changes)
  limits = scoring_methods.limits(scoring_methods.METHODS[name], objective)
  assert dataclasses.astuple(limits) == expected
  # A full window fits, a larger one does not.
  n = min(limits.scored, limits.both - 1)
  given = min(limits.context, limits.both - n)
  context, scored = np.full(given, A), np.full(n, B)
  example = (
    scoring_methods.METHODS[name]
    .queries(objective, context, scored, 1, np.random.default_rng(0))[0]
    .example
  )
  assert len(example.tokens_L) <= capacity.tokens
  encoder = example.encoder_tokens_M
  if encoder is None:
    assert len(example.tokens_L) == capacity.tokens
  else:
    assert len(encoder) == capacity.encoder_tokens


def test_rows_without_room_are_a_mistake():
  objective = make_objective('blocks', types.Size(tokens=3))
  with pytest.raises(errors.UserError, match=r'data\.sequence_length'):
    scoring_methods.limits(scoring_methods.METHODS['blocks'], objective)
