"""Validation: always the same rows, and sums by place and by masking ratio."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import types
from lm.config import resolve as config_lib
from lm.data import packing, store
from lm.evaluation import validation
from lm.models import readout
from lm.objectives import causal, diffusion, token_loss
from lm.runtime import sharding

LENGTH = 32
TEXT = 300


class PlaceModel:
  """The logit of TEXT falls with the place; nothing else matters."""

  def hidden(self, params, batch, *, key=None, train=False):
    del params, key, train
    return batch.position_BxL[:, :, None].astype(jnp.float32)

  def logits(self, params, hidden):
    return -params * hidden * jax.nn.one_hot(TEXT, 528)

  def token_log_probs(self, params, batch, allowed_V=None, *, chunk=None):
    return readout.token_log_probs(
      self.hidden, self.logits, params, batch, allowed_V, chunk=chunk
    )


SLOPE = 0.1


def nats(place):
  """What TEXT costs there."""
  return np.log(527 + np.exp(-SLOPE * place)) + SLOPE * place


def mask_some(record, rng):
  """As `masked`: any number of tokens, from none to all."""
  n = len(record.ids_L)
  noise = np.zeros(n, bool)
  noise[rng.permutation(n)[: rng.integers(n + 1)]] = True
  return [diffusion.noised(record.ids_L[:0], record.ids_L, noise)]


def write(folder, lengths):
  writer = store.Writer(folder)
  for length in lengths:
    starts = np.arange(length)
    writer.add(store.encode([np.stack([starts * 0 + TEXT, starts, starts])]))
  writer.close(np.zeros(len(lengths)))
  return store.Split(folder)


@pytest.fixture
def split(tmp_path):
  return write(tmp_path / 'split', [*range(1, 31), 70])


def make_objective(config, *, masks, predictions=0):
  return types.Objective(
    raw_length=LENGTH - 1,
    capacity=types.Size(tokens=LENGTH, predictions=predictions),
    sizes=lambda n, rng: [
      types.Size(tokens=n + masks, predictions=n if predictions else 0)
    ],
    corrupt=mask_some if masks else causal.corrupt,
    loss=token_loss.make(config, 'name'),
    coefficients={'name': 1.0},
    attention='bidirectional' if masks else 'causal',
    scorer='left_to_right' if masks else 'exact',
  )


def make(config, split, *, masks, predictions=0):
  config.evaluate.batches = 0
  resolved = config_lib.resolve(config)
  objective = make_objective(resolved, masks=masks, predictions=predictions)
  mesh = sharding.make_mesh(resolved, jax.devices()[:1])
  found = validation.Validation(split, objective, PlaceModel(), mesh, resolved)
  return found, objective


def by_hand(split, objective):
  """Nats of every predicted token, by its place and by its segment's ratio."""
  rows = packing.Rows(split, objective, seed=0)
  places, ratios = (collections.defaultdict(list) for _ in range(2))
  for number in range(rows.rows_in_first_epoch(10**6)):
    row = rows[number]
    for segment in range(1, row['segment'].max() + 1):
      inside = row['segment'] == segment
      weights, targets = row['weights'][inside], row['targets'][inside]
      ratio = np.sum(weights > 0) / np.sum(targets >= 270)
      for place in np.flatnonzero(weights):
        places[place * 8 // LENGTH].append(nats(place))
        ratios[min(int(ratio * 10 + 1e-9), 9)].append(nats(place))
  return places, ratios


@pytest.mark.parametrize('predictions', [0, 30])
@pytest.mark.parametrize('chunk', [0, 7])
def test_losses_are_distinguished_by_place_and_by_masking_ratio(
  config, split, predictions, chunk
):
  config.train.loss_chunk = chunk
  measure, objective = make(config, split, masks=True, predictions=predictions)
  values = measure(jnp.float32(SLOPE))
  places, ratios = by_hand(split, objective)
  assert len(places) == 8
  assert values['bits_by_position'] == pytest.approx(
    [np.mean(places[i]) / np.log(2) for i in range(8)], rel=1e-5
  )
  assert len(ratios) >= 9
  for tenth, value in enumerate(values['loss_by_masking_ratio']):
    if ratios[tenth]:
      assert value == pytest.approx(np.mean(ratios[tenth]), rel=1e-5)
    else:
      assert value is None
  every = np.concatenate(list(places.values()))
  assert values['loss'] == pytest.approx(every.mean(), rel=1e-5)
  # There would be none of tokens at masks.
  assert 'perplexity' not in values


def test_a_causal_loss_has_a_perplexity_and_no_masking_ratio(config, split):
  measure, _ = make(config, split, masks=False)
  values = measure(jnp.float32(SLOPE))
  assert set(values) == {'loss', 'loss/name', 'perplexity', 'bits_by_position'}
  assert values['perplexity'] == pytest.approx(np.exp(values['loss']))


def test_a_part_in_which_nothing_is_predicted_has_no_figure(config, tmp_path):
  measure, _ = make(config, write(tmp_path / 'short', [5, 5]), masks=False)
  found = measure(jnp.float32(SLOPE))['bits_by_position']
  assert [value is None for value in found] == [False, False, *[True] * 6]


def test_corruption_is_drawn_once_for_all_seeds(config, split):
  """To the bit, at each call and for each run."""
  first, _ = make(config, split, masks=True)
  config.seed = 7
  other, _ = make(config, split, masks=True)
  values = first(jnp.float32(SLOPE))
  assert values == first(jnp.float32(SLOPE)) == other(jnp.float32(SLOPE))


def test_tenths_of_the_docstring():
  weights = np.zeros((2, 12), np.float32)
  weights[0, :3] = weights[1, :] = 1
  segment = np.ones((2, 12), np.int32)
  segment[0, 10:] = 0
  targets = np.full((2, 12), TEXT)
  batch = types.Batch(*(targets, targets, weights, segment, segment, segment))
  tenths = validation.masking_ratio_tenths(batch)
  assert tenths[0, :10].tolist() == [3] * 10
  assert tenths[1].tolist() == [9] * 12
