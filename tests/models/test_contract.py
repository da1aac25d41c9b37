"""What `types.Model` and `types.Objective` promise of every architecture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.batches import one_a_row

from lm import models, objectives
from lm.config import resolve as config_lib
from lm.data import packing, store

ARCHITECTURES = ('decoder', 'encoder', 'encoder_decoder')


def build(config, name, architecture, **fields):
  """An objective and its model; `fields` are those of `config.model`."""
  config = config.copy_and_resolve_references()
  config.objective.name = name
  config.model.architecture = architecture
  if objectives.OBJECTIVES[name].data == 'pairs':
    config.data.target_column = 'target'
  config.model.update(fields)
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  return objective, models.make(config, objective)


@pytest.mark.parametrize(
  ('name', 'architecture'),
  [
    ('causal', 'decoder'),
    ('prefix', 'decoder'),
    ('prefix', 'encoder_decoder'),
  ],
)
def test_a_cache_counts_the_positions_read_and_its_rows_can_be_gathered(
  config, name, architecture
):
  _, model = build(config, name, architecture)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  rng = np.random.default_rng(0)
  # The last row is padding alone: it fills up a batch.
  lengths = [5, 1, 3, 0]
  prompts = [rng.integers(270, 526, n) for n in lengths]
  batch = one_a_row(prompts, len(lengths), 6)
  if architecture == 'encoder_decoder':
    side = one_a_row([np.full(2 + n, 300) for n in lengths[:3]], 4, 8)
    batch = dataclasses.replace(
      batch,
      encoder_tokens_BxM=side.tokens_BxL,
      encoder_segment_BxM=side.segment_BxL,
      encoder_position_BxM=side.position_BxL,
    )
  batch = jax.tree.map(jnp.asarray, batch)
  extend = jax.jit(model.extend)

  def check(cache, expected):
    assert cache['length'].dtype == jnp.int32
    assert cache['length'].tolist() == expected
    for leaf in jax.tree.leaves(cache):
      assert leaf.shape[0] == len(expected)

  _, cache = jax.jit(model.start, static_argnums=2)(params, batch, 12)
  check(cache, [5, 1, 3, 0])
  tokens = jnp.asarray(rng.integers(270, 526, (4, 2)), jnp.int32)
  _, cache = extend(params, cache, tokens)
  check(cache, [7, 3, 5, 2])
  # Beam search keeps some rows, some of them twice.
  rows = jnp.array([2, 0, 0, 1])
  gathered = jax.tree.map(lambda x: x[rows], cache)
  check(gathered, [5, 7, 7, 3])
  hidden, cache = extend(params, cache, tokens[:, :1])
  found, gathered = extend(params, gathered, tokens[rows, :1])
  check(gathered, [6, 8, 8, 4])
  np.testing.assert_allclose(found, hidden[rows], atol=1e-6)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_shapes_of_the_trunk_depend_on_the_config_alone(config, architecture):
  shapes = {}
  for name, spec in objectives.OBJECTIVES.items():
    if architecture in spec.architectures:
      _, model = build(config, name, architecture, position='learned')
      trunk = jax.eval_shape(model.init, jax.random.PRNGKey(0))['trunk']
      shapes[name] = jax.tree.map(lambda x: x.shape, trunk)
  first, *others = shapes.values()
  table = first['embeddings']['position']['embedding']
  assert table == (config.data.sequence_length, config.model.width)
  assert others
  assert all(other == first for other in others), shapes


def test_types_of_examples_reach_the_embeddings(config, tmp_path):
  """Examples may lack an array that others have; it is 0 there."""
  objective, model = build(config, 'causal', 'decoder', token_types=2)

  def corrupt(record, rng):
    (example,) = objective.corrupt(record, rng)
    if record.ids_L[0] % 2:
      return [example]
    type_L = (np.arange(len(record.ids_L)) > 1).astype(np.int32)
    return [dataclasses.replace(example, type_L=type_L)]

  typed = dataclasses.replace(objective, corrupt=corrupt, arrays=('type',))
  writer = store.Writer(tmp_path / 'train')
  for number in range(8):
    ids_L = 300 + number + np.arange(5 + number)
    writer.add(store.encode([np.stack([ids_L, *[np.arange(len(ids_L))] * 2])]))
  writer.close(np.zeros(8, np.int64))
  rows = packing.Rows(store.Split(tmp_path / 'train'), typed, seed=0)
  made = [rows[r] for r in range(rows.rows_in_first_epoch(100))]
  batch = packing.stack(made)
  segment_BxL, position_BxL = batch.segment_BxL, batch.position_BxL
  expected_BxL = np.zeros_like(batch.tokens_BxL)
  for row, segment in np.ndindex(len(made), segment_BxL.max()):
    (places,) = np.nonzero(segment_BxL[row] == segment + 1)
    if len(places) and batch.targets_BxL[row, places[0]] % 2 == 0:
      expected_BxL[row, places] = position_BxL[row, places] > 1
  assert 0 < np.sum(expected_BxL) < np.sum(segment_BxL > 0) / 2
  np.testing.assert_array_equal(batch.type_BxL, expected_BxL)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  hidden = jax.jit(lambda batch: model.hidden(params, batch))
  without = dataclasses.replace(batch, type_BxL=np.zeros_like(expected_BxL))
  changes_BxL = np.any(hidden(batch) != hidden(without), axis=-1)
  np.testing.assert_array_equal(changes_BxL, expected_BxL > 0)
