"""The formula of model FLOPs against XLA's own count of what it compiled."""

import dataclasses
import functools
import types

import jax
import ml_collections
import pytest

from experiments import base
from lm import field, models, objectives, types as lm_types
from lm.config import resolve as config_lib
from lm.data import packing
from lm.models import readout, transformer
from lm.training import flops

SHAPES = {
  'gpt2': {
    'model.activation': 'gelu_tanh',
    'model.position': 'learned',
    'model.norm': 'layernorm',
    'model.bias': True,
  },
  'llama': {'model.tie_embeddings': False, 'model.num_kv_heads': 2},
  # Rows of several causal blocks, in which attention is much of the whole.
  'long': {
    'data.sequence_length': 1024,
    'data.batch_size': 1,
    'model.width': 128,
    'model.mlp_width': 128,
    'model.num_heads': 2,
  },
  # A quarter of the positions is predicted and read out.
  'prefix': {
    'objective.name': 'prefix',
    'objective.prefix.split': 'fixed',
    'objective.prefix.share': 0.75,
  },
  # As masked objectives are, which see all and predict few.
  'bert': {
    'model.activation': 'gelu',
    'model.position': 'learned',
    'model.norm': 'layernorm',
    'model.norm_placement': 'post',
    'model.embedding_norm': True,
    'model.token_types': 2,
    'model.readout': 'transform',
    'model.bias': True,
  },
  't5': {
    'objective.name': 'prefix',
    'objective.prefix.split': 'fixed',
    'objective.prefix.share': 0.75,
    'data.sequence_length': 512,
    'data.batch_size': 1,
    'model.architecture': 'encoder_decoder',
    'model.num_encoder_layers': 3,
    'model.num_kv_heads': 2,
    'model.head_size': 32,
    'model.position': 'relative',
    'model.scale_attention': False,
    'model.activation': 'relu',
  },
}


def resolved(**changes):
  """Sizes at which products outweigh all else, as they do in real models."""
  config = base.get_config()
  config.data.tokenizer = 'bytes'
  config.data.vocab_size = 1024
  config.data.sequence_length = 128
  config.data.batch_size = 2
  config.model.num_layers = 2
  config.model.scan_layers = False
  for name, value in changes.items():
    field.put(config, name, value)
  return config_lib.resolve(config)


def objective_of(shape: str):
  objective = objectives.make(resolved(**SHAPES[shape]))
  if shape != 'bert':
    return objective
  capacity = dataclasses.replace(objective.capacity, predictions=24)
  return dataclasses.replace(
    objective, attention='bidirectional', capacity=capacity
  )


@functools.cache
def xla_flops(shape: str, what: str) -> float:
  """What XLA counts in a forward pass, or in a gradient, on one device."""
  config, objective = resolved(**SHAPES[shape]), objective_of(shape)
  model = models.make(config, objective)
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  row = packing.pack([], objective.capacity)
  batch = packing.stack([row] * config.data.batch_size)

  def loss(params):
    terms = objective.loss(model, params, batch, None, True)
    return terms[config.objective.name][0]

  def logits(params):
    hidden = model.hidden(params, batch)
    return model.logits(params, readout.read_out(hidden, batch)[0])

  function = {'forward': logits, 'gradient': jax.grad(loss)}[what]
  return jax.jit(function).lower(params).compile().cost_analysis()['flops']


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('what', ['forward', 'gradient'])
def test_agrees_with_xla(shape, what):
  config = resolved(**SHAPES[shape])
  formula = {'forward': flops.forward, 'gradient': flops.train_step}[what]
  found = formula(config, objective_of(shape), convention='computed')
  assert found == pytest.approx(xla_flops(shape, what), rel=0.1)


def test_the_conventions_differ_by_what_causal_blocks_skip():
  """Four blocks leave 5/8 of the square, which XLA's count must show."""
  config, objective = resolved(**SHAPES['long']), objective_of('long')
  square = flops.forward(config, objective)
  computed = flops.forward(config, objective, convention='computed')
  pairs = config.data.sequence_length**2
  products = 4 * config.model.width * config.model.num_layers
  assert square - computed == products * pairs * 3 // 8
  everything = dataclasses.replace(objective, attention='bidirectional')
  assert flops.forward(config, everything, convention='computed') == square
  unknown = dataclasses.replace(objective, attention='full')
  with pytest.raises(ValueError, match="'full'"):
    flops.forward(config, unknown, convention='computed')
  assert square > 1.1 * xla_flops('long', 'forward')


def test_the_convention_does_not_depend_on_what_is_predicted():
  """Else objectives of one shape would not get the same steps for a budget."""
  config, few = resolved(**SHAPES['bert']), objective_of('bert')
  all_ = dataclasses.replace(
    few, capacity=dataclasses.replace(few.capacity, predictions=0)
  )
  assert flops.forward(config, few) == flops.forward(config, all_)
  found = [
    flops.forward(config, one, convention='computed') for one in (few, all_)
  ]
  # 104 of 128 positions are not read out, nor transformed before.
  saved = 2 * 2 * 104 * config.model.width * (1024 + config.model.width)
  assert found[1] - found[0] == saved


def small(**changes):
  """The config of the docstring's examples, and an objective for it."""
  config = ml_collections.ConfigDict(resolved(**changes))
  config.model.update(
    width=4, num_heads=2, head_size=2, num_kv_heads=1, mlp_width=8, num_layers=1
  )
  config.data.update(vocab_size=10, batch_size=5)
  capacity = lm_types.Size(tokens=3)
  if config.model.architecture == 'encoder_decoder':
    capacity = lm_types.Size(tokens=3, encoder_tokens=5)
    config.model.num_encoder_layers = 1
  return config, dataclasses.replace(objectives.make(config), capacity=capacity)


def test_the_examples_of_the_docstring():
  config, objective = small()
  one = transformer.flops(config, objective, 'square')
  parts = {'projections': 288, 'attention': 144, 'mlp': 576, 'readout': 240}
  assert one == parts
  assert flops.forward(config, objective) == 5 * (288 + 144 + 576 + 240)
  step = flops.train_step(config, objective)
  assert step == 3 * flops.forward(config, objective)
  sides = {'objective.name': 'prefix', 'model.architecture': 'encoder_decoder'}
  config, objective = small(**sides)
  two = transformer.flops(config, objective, 'square')
  more = {name: two[name] - one[name] for name in one}
  assert more == {
    'projections': 480 + 352,
    'attention': 640,
    'mlp': 960,
    'readout': 0,
  }


def test_what_runs_twice_or_in_a_loop_counts_once():
  other = {'model.remat': 'full', 'model.scan_layers': True}
  other |= {'train.loss_chunk': 32, 'train.microbatches': 2}
  plain, other = resolved(), resolved(**other)
  assert flops.train_step(other, objectives.make(other)) == flops.train_step(
    plain, objectives.make(plain)
  )


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v3', 61.5e12),
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A100 80GB PCIe', 312e12),
    ('NVIDIA H100 80GB HBM3', 989.5e12),
    ('NVIDIA H100 PCIe', 756.5e12),
    ('NVIDIA H100 NVL', 835.5e12),
    ('NVIDIA GH200 480GB', 989.5e12),
    ('NVIDIA H200', 989.5e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12),
    # Never a peak that is another's.
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None),
    ('NVIDIA L40', None),
    ('TPU v4 lite', None),
    ('TPU7x', None),
    ('cpu', None),
  ],
)
def test_peaks_are_of_known_devices_alone(kind, peak):
  assert flops.peak(kind) == peak


def test_utilization_is_a_share_of_all_devices():
  tpu, cpu = (
    types.SimpleNamespace(device_kind=kind) for kind in ('TPU v4', 'cpu')
  )
  assert flops.utilization(275e12, [tpu] * 4) == pytest.approx(0.25)
  assert flops.utilization(275e12, [tpu, cpu]) is None
