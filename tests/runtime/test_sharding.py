"""The mesh changes where arrays live, and no figure beyond rounding."""

import jax
import ml_collections
import numpy as np
import optax
import pytest

from lm import errors, models, objectives
from lm.config import resolve as config_lib
from lm.data import packing, prepare
from lm.runtime import parameter_rules, sharding
from lm.training import optimizer, program, step

RULES = models.FAMILIES['transformer'].rules

STEPS = 3
MESHES = {
  'data': {'data': 8, 'fsdp': 1, 'tensor': 1},
  'fsdp': {'data': 1, 'fsdp': 8, 'tensor': 1},
  'tensor': {'data': 2, 'fsdp': 1, 'tensor': 4},
  'all': {'data': 2, 'fsdp': 2, 'tensor': 2},
}
# Parameter -> (axis of the array, axis of the mesh) that split it.
SPLIT = {
  'params/trunk/embeddings/token/embedding': [(0, 'tensor'), (1, 'fsdp')],
  'params/trunk/layers/attention/query/kernel': [(1, 'fsdp'), (2, 'tensor')],
  'params/trunk/layers/attention/out/kernel': [(1, 'tensor'), (3, 'fsdp')],
  'params/trunk/layers/mlp/up/kernel': [(1, 'fsdp'), (2, 'tensor')],
  'params/trunk/layers/mlp/down/kernel': [(1, 'tensor'), (2, 'fsdp')],
}


@pytest.fixture
def open_config(config) -> ml_collections.ConfigDict:
  """Resolved, and open to change; one layer is split as two are."""
  config.model.num_layers = 1
  # No Adam: it divides rounding by rounding where a gradient is near zero.
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.warmup_steps = 0
  config.optimizer.clip_norm = 0.0
  return ml_collections.ConfigDict(config_lib.resolve(config))


def _train(config, shape, devices, *, microbatches=1):
  """A few steps on a mesh: losses, gradient norms and the last state."""
  config.mesh.update(shape)
  objective = objectives.make(config)
  mesh = sharding.make_mesh(config, devices)
  model = models.make(config, objective, mesh)
  transform = optimizer.make(config)
  rows = packing.Rows(
    prepare.prepare(config.data, report=lambda text: None).train(),
    objective,
    seed=config.seed,
  )
  abstract = step.abstract_state(model, transform, mesh, RULES.sharding)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  init = jax.jit(
    lambda: step.init_state(model, transform, config.seed),
    out_shardings=shardings,
  )
  state = init()
  compiled = step.jit_step(
    step.make_train_step(
      objective,
      model,
      transform,
      optimizer.make_schedule(config),
      microbatches=microbatches,
    ),
    mesh,
    abstract,
  )
  size = config.data.batch_size
  figures = []
  for number in range(STEPS):
    batch = packing.local_batch(
      rows, number, size, sharding.local_rows(mesh, size)
    )
    given = state
    state, values = compiled(state, sharding.put_batch(mesh, batch, size))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    total, weight = jax.device_get(values['terms'][config.objective.name])
    figures.append((total / weight, float(values['gradient_norm'])))
  for leaf, wanted in zip(
    jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
  ):
    assert leaf.sharding == wanted
  return np.array(figures), state


def _named(state) -> dict[str, jax.Array]:
  return {
    parameter_rules.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


@pytest.fixture(scope='module')
def one_device() -> dict:
  """What one device computes, once for all meshes."""
  return {}


@pytest.mark.parametrize(
  ('name', 'microbatches'), [*((name, 1) for name in MESHES), ('all', 2)]
)
def test_every_mesh_trains_the_same(
  open_config, one_device, name, microbatches
):
  shape = MESHES[name]
  if not one_device:
    alone = dict.fromkeys(shape, 1)
    figures, state = _train(
      ml_collections.ConfigDict(open_config), alone, jax.devices()[:1]
    )
    one_device.update(figures=figures, params=jax.device_get(state.params))
  assert jax.device_count() == 8
  figures, state = _train(
    open_config, shape, jax.devices(), microbatches=microbatches
  )
  np.testing.assert_allclose(figures, one_device['figures'], rtol=1e-4)
  assert figures[-1, 0] < figures[0, 0]
  for leaf, expected in zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(one_device['params']),
    strict=True,
  ):
    np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5)

  # Each device holds its part and no more, of slots as of parameters.
  named = _named(state)
  for path, axes in SPLIT.items():
    whole = named[path].shape
    part = list(whole)
    for axis, mesh_axis in axes:
      part[axis] //= shape[mesh_axis]
    slots = [
      leaf
      for name, leaf in named.items()
      if name.startswith('opt_state')
      and name.endswith(path.removeprefix('params'))
    ]
    assert slots
    for leaf in (named[path], *slots):
      shards = [shard.data.shape for shard in leaf.addressable_shards]
      assert shards == [tuple(part)] * 8


T5 = {
  'architecture': 'encoder_decoder',
  'position': 'relative',
  'activation': 'relu',
  'scale_attention': False,
  'scale_readout': True,
}


def test_an_encoder_decoder_trains_the_same_on_a_mesh(config):
  """With microbatches there, and none on the one device."""
  config.objective.name = 'prefix'
  config.model.update(T5)
  config.model.num_layers = 1
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.warmup_steps = 0
  config = ml_collections.ConfigDict(config_lib.resolve(config))
  alone = dict.fromkeys(MESHES['all'], 1)
  expected, state = _train(config, alone, jax.devices()[:1])
  expected_params = jax.device_get(state.params)
  found, state = _train(config, MESHES['all'], jax.devices(), microbatches=2)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert found[-1, 0] < found[0, 0]
  for leaf, other in zip(
    *map(jax.tree.leaves, (state.params, expected_params)), strict=True
  ):
    np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
@pytest.mark.parametrize('name', ['fsdp', 'all'])
def test_every_device_works_on_its_rows_alone(config, name, architecture):
  """No activation in the compiled step has the rows of the whole batch."""
  config.model.architecture = architecture
  config.objective.name = 'prefix'
  config.data.batch_size, config.data.sequence_length = 16, 88
  config.model.num_layers = 1
  config.mesh.update(MESHES[name])
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  mesh = sharding.make_mesh(config)
  model = models.make(config, objective, mesh)
  made = program.make(config, objective, model, mesh)
  text = made.compile().as_text()
  lengths = {objective.capacity.tokens, objective.capacity.encoder_tokens}
  rows = 16 // (mesh.shape['data'] * mesh.shape['fsdp'])
  for length in lengths - {0}:
    assert f'f32[{rows},{length},' in text
    assert f'f32[16,{length},' not in text
    assert f'f32[{16 * length},' not in text


@pytest.mark.parametrize('optimizer_name', optimizer.OPTIMIZERS)
@pytest.mark.parametrize(
  'model',
  [
    {},
    {**T5, 'bias': True, 'norm': 'layernorm'},
    {
      'position': 'learned',
      'token_types': 2,
      'norm_placement': 'post',
      'embedding_norm': True,
      'readout': 'transform',
      'heads': ('pooler',),
    },
    {
      'position': 'learned',
      'norm': 'layernorm',
      'activation': 'gelu',
      'bias': True,
      'tie_embeddings': False,
    },
  ],
)
def test_every_array_has_a_place(config, optimizer_name, model):
  config.optimizer.name = optimizer_name
  config.model.update(model)
  if 'architecture' in model:
    config.objective.name = 'prefix'
  config.mesh.update(MESHES['all'])
  config = config_lib.resolve(config)
  model = models.make(config, objectives.make(config))
  mesh = sharding.make_mesh(config)
  state = step.abstract_state(
    model, optimizer.make(config), mesh, RULES.sharding, average=True
  )
  for name, leaf in _named(state).items():
    # Raises where a part would not be whole.
    leaf.sharding.shard_shape(leaf.shape)
    # Vectors of a layer and of the vocabulary may be on every device.
    large = leaf.size > max(4 * config.model.mlp_width, config.data.vocab_size)
    assert leaf.sharding.is_fully_replicated <= (not large), name


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_every_optimizer_steps_the_same_on_a_mesh(config, name):
  """On given gradients: where a model's are near 0, their sign is rounding."""
  config.optimizer.name = name
  config.optimizer.learning_rate = 0.1
  config = ml_collections.ConfigDict(config_lib.resolve(config))
  model = models.make(config, objectives.make(config))
  transform = optimizer.make(config)

  def update(params, slots, gradients):
    updates, slots = transform.update(gradients, slots, params)
    return optax.apply_updates(params, updates), slots

  def run(shape, devices):
    """Parameters before and after three steps, and the slots."""
    config.mesh.update(shape)
    abstract = step.abstract_state(
      model, transform, sharding.make_mesh(config, devices), RULES.sharding
    )
    rng = np.random.default_rng(0)
    before, *gradients = (
      jax.tree.map(
        lambda x: jax.device_put(
          rng.standard_normal(x.shape, np.float32), x.sharding
        ),
        abstract.params,
      )
      for _ in range(4)
    )
    places = jax.tree.map(
      lambda x: x.sharding, (abstract.params, abstract.opt_state)
    )
    params, slots = (
      before,
      jax.jit(transform.init, out_shardings=places[1])(before),
    )
    compiled = jax.jit(update, out_shardings=places)
    for gradient in gradients:
      params, slots = compiled(params, slots, gradient)
    return before, params, slots

  before, params, slots = run(
    dict.fromkeys(MESHES['all'], 1), jax.devices()[:1]
  )
  for x, y in zip(*map(jax.tree.leaves, (before, params)), strict=True):
    assert np.abs(np.asarray(y) - x).max() > 1e-3
  split = run(MESHES['all'], jax.devices())
  for x, y in zip(
    *map(jax.tree.leaves, (split, (before, params, slots))), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_an_array_without_a_rule_is_an_error(open_config):
  mesh = sharding.make_mesh(open_config)
  state = {'params': {'trunk': {'spam': np.zeros(3)}}}
  with pytest.raises(ValueError, match="'params/trunk/spam'"):
    sharding.of_state(mesh, state, RULES.sharding)


@pytest.mark.parametrize('shape', MESHES.values(), ids=MESHES)
def test_a_batch_keeps_its_rows_in_order(open_config, shape):
  open_config.mesh.update(shape)
  mesh = sharding.make_mesh(open_config)
  rows = np.arange(16 * 3).reshape(16, 3)
  assert sharding.local_rows(mesh, 16).tolist() == list(range(16))
  batch = sharding.put_batch(mesh, {'tokens': rows}, 16)['tokens']
  np.testing.assert_array_equal(batch, rows)
  share = 16 // (shape['data'] * shape['fsdp'])
  parts = {part.data.shape for part in batch.addressable_shards}
  assert parts == {(share, 3)}


def test_minus_one_takes_what_is_left(open_config):
  open_config.mesh.update({'data': -1, 'fsdp': 2, 'tensor': 2})
  assert sharding.mesh_shape(open_config, 8) == {
    'data': 2,
    'fsdp': 2,
    'tensor': 2,
  }
  open_config.mesh.update({'data': 1, 'fsdp': -1, 'tensor': 1})
  assert sharding.mesh_shape(open_config, 6)['fsdp'] == 6


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ({'data': 3, 'fsdp': 1, 'tensor': 1}, 'does not fit 8 device'),
    ({'data': -1, 'fsdp': 3, 'tensor': 1}, 'does not fit 8 device'),
    ({'data': -1, 'fsdp': -1, 'tensor': 1}, 'only one axis'),
    ({'data': 8, 'fsdp': 0, 'tensor': 1}, r'mesh\.fsdp=0: give a number'),
    ({'data': 8, 'fsdp': 1, 'tensor': -2}, r'mesh\.tensor=-2: give a number'),
  ],
)
def test_a_mesh_that_does_not_fit_is_an_error(open_config, shape, message):
  open_config.mesh.update(shape)
  with pytest.raises(errors.UserError, match=message) as caught:
    sharding.mesh_shape(open_config, 8)
  assert '\n' not in str(caught.value)
