"""Fused kernels: who can run where, and (interpreted) their slow twin."""

import dataclasses
import functools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.attention_cases import check_equals_reference, packed, random_qkv
from helpers.decoders import batch_of
from jax.sharding import NamedSharding, PartitionSpec as P

from lm import errors, models, objectives, types
from lm.config import resolve as config_lib
from lm.models import attention, attention_kernels, transformer
from lm.runtime import sharding


@pytest.fixture
def meshes(config):
  """mesh(data, fsdp, tensor) over as many devices as that takes."""

  def make(*shape):
    axes = ('data', 'fsdp', 'tensor')
    config.mesh.update(dict(zip(axes, shape, strict=True)))
    return sharding.make_mesh(config, jax.devices()[: np.prod(shape)])

  return make


def run(name, order, segment, static, mesh):
  return functools.partial(
    attention.attend,
    attention=static,
    order_BxL=order,
    segment_BxL=segment,
    implementation=name,
    mesh=mesh,
  )


# Several blocks, grouped queries, heads that are padded to 32.
_MANY = ('causal', (2, 4, 2, 24), 384)
_FULL = ('bidirectional', (2, 2, 2, 8), 128)
_PREFIX = ('prefix', (2, 2, 1, 8), 128)
# Wide heads, which take smaller blocks on GPU.
_WIDE = ('causal', (1, 2, 1, 128), 128)


@pytest.mark.parametrize(
  ('name', 'static', 'shape', 'length'),
  [
    *[('pallas_gpu', *case) for case in (_MANY, _FULL, _PREFIX, _WIDE)],
    *[('splash', *case) for case in (_MANY, _FULL, _PREFIX)],
  ],
)
def test_pallas_kernels_equal_the_reference(
  name, static, shape, length, meshes
):
  lengths = [length // 3 - 5, length // 2]
  order, segment = packed(length, lengths, static=static, batch=shape[0])
  check_equals_reference(
    run(name, order, segment, static, meshes(1, 1, 1)),
    random_qkv(length, shape=shape),
    order,
    segment,
  )


def test_cudnn_gets_a_causal_call_that_is_right_for_one_segment_a_row(
  meshes, monkeypatch
):
  """Run by XLA in its place; the arguments are all that is ours."""
  given = []

  def instead(*args, implementation, **how):
    given.append((implementation, how))
    return original(*args, implementation='xla', **how)

  original = jax.nn.dot_product_attention
  monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
  for lengths in ([40], [31]):
    order, segment = packed(40, lengths)
    check_equals_reference(
      run('cudnn', order, segment, 'causal', meshes(1, 1, 1)),
      random_qkv(40),
      order,
      segment,
    )
  # No mask, which it would make a bias [B, H, L, L].
  assert given[0] == ('cudnn', {'is_causal': True})
  with pytest.raises(ValueError, match='cudnn is causal only'):
    run('cudnn', order, segment, 'bidirectional', meshes(1, 1, 1))(
      *random_qkv(40)
    )


def test_each_device_runs_its_rows_and_heads(meshes):
  """Without copies; a batch too small to split is read by all."""
  mesh, length, real = meshes(2, 2, 2), 128, 110
  order, segment = packed(length, [50, real - 50], batch=4)
  qkv = random_qkv(length, shape=(4, 4, 2, 8))
  for size, rows in ((4, ('data', 'fsdp')), (1, None)):
    given = [x[:size] for x in qkv]
    setting = (order[:size], segment[:size], 'causal')
    place = NamedSharding(mesh, P(rows, None, 'tensor'))
    placed = jax.device_put(given, place)
    attend = jax.jit(run('splash', *setting, mesh))
    compiled = attend.lower(*placed).compile()
    assert 'all-gather' not in compiled.as_text()
    assert compiled.output_shardings.is_equivalent_to(place, 4)
    np.testing.assert_allclose(
      compiled(*placed)[:, :real],
      run('reference', *setting, None)(*given)[:, :real],
      atol=1e-5,
    )


def test_a_kernel_without_a_mesh_is_an_error():
  order, segment = packed(128, [128])
  with pytest.raises(ValueError, match='splash needs the mesh'):
    run('splash', order, segment, 'causal', None)(*random_qkv(128))


def test_a_model_runs_one_on_a_mesh(config, monkeypatch):
  """Values, gradients, and the prompt of cached decoding."""
  # On this platform nobody is allowed to choose it.
  monkeypatch.setattr(
    transformer.attention_lib, 'choose', lambda wanted, case: wanted
  )
  config.data.sequence_length = 128
  config.mesh.update({'data': 2, 'fsdp': 1, 'tensor': 1})
  mesh = sharding.make_mesh(config, jax.devices()[:2])
  config.model.update({'num_layers': 1, 'scan_layers': True, 'remat': 'full'})
  batch = batch_of([[50, 60], [100]], 128)
  results, starts = [], []
  for implementation in ('blocks', 'splash'):
    config.model.attention = implementation
    model = models.make(
      config_lib.resolve(config),
      objectives.make(config_lib.resolve(config)),
      mesh,
    )
    params = jax.jit(model.init)(jax.random.PRNGKey(0))

    def loss(params, model=model):
      hidden = model.hidden(params, batch)
      return jnp.mean((hidden * batch.weights_BxL[:, :, None]) ** 2)

    runs_kernel = 'pallas_call' in str(jax.make_jaxpr(loss)(params))
    assert runs_kernel == (implementation == 'splash')
    results.append(jax.jit(jax.grad(loss))(params))
    lone = jax.tree.map(lambda x: x[1:], batch)
    hidden, _ = jax.jit(model.start, static_argnums=2)(params, lone, 128)
    starts.append(hidden * lone.weights_BxL[:, :, None])
  for pair in (results, starts):
    for found, expected in zip(*map(jax.tree.leaves, pair), strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-3)


def device(platform, capability=None):
  given = {'platform': platform}
  if capability:
    given['compute_capability'] = capability
  return python_types.SimpleNamespace(**given)


CPU, TPU = device('cpu'), device('tpu')
T4, A100, H100 = (device('gpu', c) for c in ('7.5', '8.0', '9.0'))
MI250 = device('gpu', 'gfx90a')
LONG = {'data.sequence_length': 256}
ONE = {
  **LONG,
  'data.cross_document_attention': True,
  'model.dtype': 'bfloat16',
}


def choose(config, where, fields, static='causal'):
  for field, value in fields.items():
    section, name = field.split('.')
    config[section][name] = value
  resolved = config_lib.resolve(config)
  objective = dataclasses.replace(objectives.make(resolved), attention=static)
  (chosen,) = transformer.choose_attention(resolved, objective, where).values()
  return chosen


@pytest.mark.parametrize(
  ('where', 'fields', 'expected'),
  [
    (CPU, LONG, 'blocks'),
    (TPU, LONG, 'splash'),
    (TPU, {'data.sequence_length': 192}, 'xla'),
    (A100, LONG, 'pallas_gpu'),
    (A100, {'data.sequence_length': 192}, 'xla'),
    (A100, ONE, 'cudnn'),
    (A100, {**ONE, 'model.dtype': 'float32'}, 'pallas_gpu'),
    (A100, {**ONE, 'data.cross_document_attention': False}, 'pallas_gpu'),
    (A100, {**ONE, 'model.width': 24}, 'pallas_gpu'),
    (A100, {**ONE, 'model.width': 1024}, 'pallas_gpu'),
    (H100, {**ONE, 'model.width': 1024}, 'cudnn'),
    (H100, {**LONG, 'model.width': 1024}, 'xla'),
    (T4, ONE, 'xla'),
    (MI250, ONE, 'xla'),
    (device('metal'), LONG, 'xla'),
  ],
)
def test_the_platform_chooses_the_first_that_can_run(
  config, where, fields, expected
):
  assert choose(config, where, fields) == expected


@pytest.mark.parametrize('static', ['bidirectional', 'prefix'])
def test_cudnn_is_for_causal_objectives_alone(config, static):
  assert choose(config, H100, ONE, static) == 'pallas_gpu'
  assert choose(config, TPU, {}, static) == 'splash'


def test_relative_positions_take_no_kernel(config):
  relative = {**ONE, 'model.position': 'relative'}
  for where in (H100, TPU):
    assert choose(config, where, relative) == 'xla'
  config.model.attention = 'splash'
  with pytest.raises(errors.UserError, match='adds no bias'):
    choose(config, TPU, relative)
  order, segment = packed(128, [128])
  bias = jnp.zeros((1, 4, 128, 128))
  with pytest.raises(ValueError, match='splash adds no bias'):
    run('splash', order, segment, 'causal', jax.devices())(
      *random_qkv(128), bias_BxHxLxL=bias
    )


def test_each_side_of_an_encoder_decoder_has_a_choice_of_its_own(config):
  config.objective.name = 'prefix'
  config.model.architecture = 'encoder_decoder'
  config.data.sequence_length = 512
  resolved = config_lib.resolve(config)
  objective = objectives.make(resolved)
  chosen = transformer.choose_attention(resolved, objective, TPU)
  assert chosen == {'encoder': 'splash', 'decoder': 'splash'}
  short = dataclasses.replace(
    objective, capacity=types.Size(tokens=58, encoder_tokens=256)
  )
  chosen = transformer.choose_attention(resolved, short, TPU)
  assert chosen == {'encoder': 'splash', 'decoder': 'xla'}


@pytest.mark.parametrize(
  ('wanted', 'where', 'fields', 'expected'),
  [
    ('cudnn', CPU, ONE, 'runs on GPU, not on cpu'),
    ('pallas_gpu', TPU, LONG, 'runs on GPU, not on tpu'),
    ('splash', A100, LONG, 'runs on TPU, not on gpu'),
    ('pallas_gpu', T4, LONG, r'compute capability 8\.0 or newer, not 7\.5'),
    ('splash', TPU, {}, r'data\.sequence_length .* multiple of 128, not 32'),
    ('pallas_gpu', A100, {}, r'data\.sequence_length .* of 128, not 32'),
    ('cudnn', A100, {**ONE, 'model.dtype': 'float32'}, r"dtype='bfloat16'"),
    ('cudnn', A100, {'model.dtype': 'bfloat16'}, 'cross_document_attention'),
    ('cudnn', A100, {**ONE, 'model.width': 24}, 'divisible by 8 .*, not 6'),
    ('cudnn', A100, {**ONE, 'model.width': 1024}, 'at most 128, not 256'),
    (
      'pallas_gpu',
      A100,
      {**LONG, 'model.width': 1024},
      'at most 128 in float32 and 256 in bfloat16, not 256 in float32',
    ),
  ],
)
def test_an_impossible_choice_says_what_it_needs(
  config, wanted, where, fields, expected
):
  config.model.attention = wanted
  with pytest.raises(errors.UserError, match=expected) as caught:
    choose(config, where, fields)
  message = str(caught.value)
  assert message.startswith(f"model.attention='{wanted}' ")
  assert 'reference, blocks, xla' in message
  assert '\n' not in message


@pytest.mark.parametrize('where', [CPU, TPU, T4, H100])
@pytest.mark.parametrize('wanted', attention.PORTABLE)
def test_portable_ones_run_everywhere(config, where, wanted):
  config.model.attention = wanted
  assert choose(config, where, {}) == wanted


def test_every_kernel_is_of_some_platforms_choice():
  named = {name for names in attention.PREFERENCES.values() for name in names}
  assert set(attention_kernels.KERNELS) <= named
