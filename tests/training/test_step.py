"""The division happens once: splitting a batch changes no loss or gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer
from lm.objectives import layout
from lm.training import metrics, optimizer, step

L = 32


class Setup:
  """The parts of a step; plain gradient descent, so that an update shows it."""

  def __init__(self, config):
    self.config = config_lib.resolve(config)
    self.objective = objectives.make(self.config)
    self.model = models.make(self.config, self.objective)
    self.transform = optax.sgd(1.0)

  def state(self, transform=None):
    return step.init_state(self.model, transform or self.transform, seed=0)

  def step(self, microbatches=1, transform=None):
    return jax.jit(
      step.make_train_step(
        self.objective,
        self.model,
        transform or self.transform,
        optax.constant_schedule(1.0),
        microbatches=microbatches,
      )
    )

  def gradient(self, batch, *, microbatches=1):
    """(metrics, parameter -> its gradient) of one step from the start."""
    state = self.state()
    new, values = self.step(microbatches)(state, batch)
    change = jax.tree.map(jnp.subtract, state.params, new.params)
    return jax.device_get(values), jax.device_get(change)


@pytest.fixture
def config(config):
  config.model.num_layers = 1
  return config


@pytest.fixture
def setup(config) -> Setup:
  return Setup(config)


def _example(rng, length: int, objective):
  """A random text of `length` positions."""
  ids = rng.integers(tokenizer.NUM_SPECIAL, tokenizer.FIRST_PIECE, length)
  ids = ids.astype(np.int32)
  record = types.Record(ids_L=ids, word_L=np.arange(length))
  return objective.corrupt(record, rng)[0]


def _batch(rows):
  """Lists of examples, a list a row, to a Batch."""
  return packing.stack(
    [packing.pack(examples, types.Size(L)) for examples in rows]
  )


def _rows(objective, lengths, seed=1):
  rng = np.random.default_rng(seed)
  return [[_example(rng, n, objective) for n in row] for row in lengths]


def _assert_same(one, other):
  """The same loss and gradient to rounding; the same counts."""
  (values, gradient), (others, other_gradient) = one, other
  for name, (total, weight) in values['terms'].items():
    np.testing.assert_allclose(total, others['terms'][name][0], rtol=1e-5)
    assert weight == others['terms'][name][1]
  for name in ('tokens', 'loss_tokens', 'text_loss_tokens'):
    assert values[name] == others[name]
  norm = others['gradient_norm']
  np.testing.assert_allclose(values['gradient_norm'], norm, rtol=1e-4)
  for x, y in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 * float(norm))


LENGTHS = [[32], [20, 9], [7, 7, 7], [31], [1], [15, 16], [4, 28], [12]]


@pytest.mark.parametrize('blank', [None, [0, 4], [1, 3, 5, 7]])
def test_microbatches_change_nothing(setup, blank):
  """Also when a microbatch (rows 0 and 4 of four) has no loss token."""
  batch = _batch(_rows(setup.objective, LENGTHS))
  if blank:
    batch.weights_BxL[blank] = 0.0
  whole = setup.gradient(batch)
  assert whole[0]['gradient_norm'] > 0.1
  for microbatches in (2, 4):
    _assert_same(setup.gradient(batch, microbatches=microbatches), whole)


def test_microbatches_change_no_extra_term(config):
  config.train.label_smoothing = 0.1
  config.train.z_loss = 0.01
  config.train.loss_chunk = 8
  setup = Setup(config)
  batch = _batch(_rows(setup.objective, LENGTHS))
  whole = setup.gradient(batch)
  assert set(whole[0]['terms']) == {'trained', 'causal', 'smoothing', 'z'}
  _assert_same(setup.gradient(batch, microbatches=4), whole)


def test_extra_terms_are_trained_and_not_evaluated(config):
  plain = Setup(config)
  config.train.label_smoothing = 0.5
  config.train.z_loss = 1.0
  extra = Setup(config)
  batch = _batch(_rows(plain.objective, LENGTHS))
  values, others = plain.gradient(batch)[0], extra.gradient(batch)[0]
  # The cross-entropy stays the true one; what is trained does not.
  np.testing.assert_allclose(
    others['terms']['causal'][0], values['terms']['causal'][0], rtol=1e-6
  )
  assert others['gradient_norm'] > 1.1 * values['gradient_norm']
  evaluate = jax.jit(step.make_evaluate_step(extra.objective, extra.model))
  terms = jax.device_get(evaluate(extra.state().params, batch))
  assert set(terms) == {'trained', 'causal'}
  losses = metrics.term_losses(terms, extra.objective.coefficients)
  assert losses['loss'] == losses['loss/causal']
  assert 'loss/trained' not in losses
  total, weight = values['terms']['causal']
  np.testing.assert_allclose(losses['loss'], total / weight, rtol=1e-6)


def test_padding_rows_change_nothing(setup):
  rows = _rows(setup.objective, LENGTHS)
  padded = [row for pair in zip(rows, [[]] * 8, strict=True) for row in pair]
  _assert_same(setup.gradient(_batch(padded)), setup.gradient(_batch(rows)))


def test_packing_changes_nothing(setup):
  """Several examples a row are the examples one a row."""
  rows = _rows(setup.objective, LENGTHS)
  alone = [[example] for row in rows for example in row]
  assert len(alone) > len(rows)
  _assert_same(setup.gradient(_batch(alone)), setup.gradient(_batch(rows)))


def test_what_lies_in_padding_changes_nothing(setup):
  batch = _batch(_rows(setup.objective, LENGTHS))
  empty = batch.segment_BxL == 0
  other = dataclasses.replace(
    batch,
    tokens_BxL=np.where(empty, 300, batch.tokens_BxL),
    targets_BxL=np.where(empty, 301, batch.targets_BxL),
    order_BxL=np.where(empty, 5, batch.order_BxL),
  )
  one, two = setup.gradient(batch), setup.gradient(other)
  assert one[0]['terms']['causal'][0] == two[0]['terms']['causal'][0]
  _assert_same(one, two)


@pytest.mark.parametrize('microbatches', [1, 2])
def test_a_batch_without_a_loss_token_does_nothing(setup, microbatches):
  batch = _batch(_rows(setup.objective, LENGTHS))
  batch.weights_BxL[:] = 0.0
  values, gradient = setup.gradient(batch, microbatches=microbatches)
  assert values['terms']['causal'] == (0.0, 0.0)
  assert values['gradient_norm'] == 0.0
  assert all(np.all(x == 0) for x in jax.tree.leaves(gradient))
  accumulator = metrics.Accumulator()
  accumulator.add(values, positions=8 * L, flops=1)
  assert accumulator.losses({'causal': 1.0}) == {}


def test_the_loss_is_a_mean_over_tokens_not_over_rows(setup):
  """A row of 32 tokens counts 32 times as much as a row of one."""
  rows = _rows(setup.objective, [[32], [1]])
  both, _ = setup.gradient(_batch(rows))
  sums = [
    setup.gradient(_batch([row]))[0]['terms']['causal'][0] for row in rows
  ]
  total, weight = both['terms']['causal']
  np.testing.assert_allclose(total, sum(sums), rtol=1e-6)
  assert weight == 33


def test_counts(setup):
  """Two texts of 5 and 3 positions; the second one ends its document."""
  rng = np.random.default_rng(0)
  first = _example(rng, 5, setup.objective)
  second = _example(rng, 3, setup.objective)
  second.targets_L[-1] = tokenizer.EOS
  values, _ = setup.gradient(_batch([[first, second], []]))
  assert values['tokens'] == 8
  assert values['loss_tokens'] == 8
  assert values['text_loss_tokens'] == 7


def test_the_gradient_norm_is_of_before_clipping(setup, config):
  batch = _batch(_rows(setup.objective, LENGTHS))
  config.optimizer.clip_norm = 1e-3
  config.optimizer.name = 'sgd'
  transform = optimizer.make(config_lib.resolve(config))
  state = setup.state(transform)
  _, values = setup.step(transform=transform)(state, batch)
  _, gradient = setup.gradient(batch)
  np.testing.assert_allclose(
    values['gradient_norm'], optax.tree.norm(gradient), rtol=1e-4
  )
  assert values['gradient_norm'] > 0.1


def test_randomness_is_of_the_key_and_the_step(config):
  config.model.dropout = 0.3
  setup = Setup(config)
  batch = _batch(_rows(setup.objective, LENGTHS))
  compiled, state = setup.step(), setup.state()

  def loss(state):
    return float(compiled(state, batch)[1]['terms']['causal'][0])

  assert loss(state) == loss(state)
  later = dataclasses.replace(state, step=state.step + 1)
  assert loss(later) != loss(state)
  other = dataclasses.replace(state, key=jax.random.PRNGKey(1))
  assert loss(other) != loss(state)


def test_a_step_advances_and_keeps_the_key(setup):
  state = setup.state()
  new, _ = setup.step()(state, _batch(_rows(setup.objective, LENGTHS)))
  assert int(new.step) == int(state.step) + 1 == 1
  np.testing.assert_array_equal(new.key, state.key)


def test_named_keys_differ_by_name_alone():
  key = jax.random.PRNGKey(3)
  first = step.named_key(key, 'loss')
  step.named_key(key, 'params')
  np.testing.assert_array_equal(step.named_key(key, 'loss'), first)
  assert np.any(step.named_key(key, 'params') != first)
  assert np.any(step.named_key(jax.random.PRNGKey(4), 'loss') != first)


def test_evaluation_has_no_dropout(config):
  config.model.dropout = 0.5
  with_dropout = Setup(config)
  config.model.dropout = 0.0
  without = Setup(config)
  batch = _batch(_rows(without.objective, LENGTHS))
  params = without.state().params
  evaluate = jax.jit(
    step.make_evaluate_step(with_dropout.objective, with_dropout.model)
  )
  total, weight = evaluate(params, batch)['causal']
  expected, _ = without.gradient(batch)
  np.testing.assert_allclose(total, expected['terms']['causal'][0], rtol=1e-6)
  assert weight == expected['terms']['causal'][1]


def test_summing_the_weights_first_costs_nothing(setup):
  """The pass before the gradient needs no model: XLA drops it."""
  parts = setup

  def plain(state, batch):
    def loss(params):
      terms = parts.objective.loss(parts.model, params, batch, None, True)
      total, weight = terms['causal']
      return total / weight

    gradients = jax.grad(loss)(state.params)
    updates, opt_state = parts.transform.update(gradients, state.opt_state)
    return optax.apply_updates(state.params, updates), opt_state

  state = parts.state()
  batch = packing.stack([packing.pack([], types.Size(L))] * 8)

  def flops(function):
    compiled = jax.jit(function).lower(state, batch).compile()
    return compiled.cost_analysis()['flops']

  # A second forward pass would be a third more.
  assert flops(parts.step()) < 1.05 * flops(plain)


def test_tokens_of_both_sides_are_counted():
  pairs = [layout.encoder_decoder(np.arange(n), np.arange(3)) for n in (4, 7)]
  row = packing.pack(pairs, types.Size(tokens=8, encoder_tokens=16))
  counts = step._count(packing.stack([row, row]))
  # BOS and the inputs of each, and three targets of each.
  assert counts['tokens'] == 2 * (5 + 8 + 3 + 3)
  assert counts['loss_tokens'] == 2 * 6
