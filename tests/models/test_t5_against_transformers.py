"""T5's shapes, 1.0 and 1.1, compute what transformers' model computes."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs torch')
transformers = pytest.importorskip('transformers', reason='needs transformers')

import jax.numpy as jnp
from helpers.encoder_decoders import T5, L, M, V, batch_of, build, pairs
from transformers.models.t5 import modeling_t5

from lm.models import relative_bias

D, H, K, F = 32, 4, 16, 64
LAYERS = {'encoder': 3, 'decoder': 2}
T5_V1 = {**T5, 'norm_epsilon': 1e-6}
T5_V11 = {
  **T5_V1,
  'activation': 'geglu_tanh',
  'tie_embeddings': False,
  'scale_readout': False,
}
SHAPES = {'relu': T5_V1, 'gated-gelu': T5_V11}


def stack_params(values, side):
  cross = side == 'decoder'

  def stacked(name, convert):
    return np.stack(
      [
        convert(values[f'{side}.block.{i}.layer.{name}.weight'])
        for i in range(LAYERS[side])
      ]
    )

  def attention(name):
    split = lambda w: w.T.reshape(D, H, K)
    join = lambda w: w.T.reshape(H, K, D)
    return {
      'query': {'kernel': stacked(f'{name}.q', split)},
      'key': {'kernel': stacked(f'{name}.k', split)},
      'value': {'kernel': stacked(f'{name}.v', split)},
      'out': {'kernel': stacked(f'{name}.o', join)},
    }

  def norm(number):
    return {'scale': stacked(f'{number}.layer_norm', np.asarray)}

  def dense(name):
    return {'kernel': stacked(f'{mlp}.DenseReluDense.{name}', np.transpose)}

  mlp = 2 if cross else 1
  gated = f'{side}.block.0.layer.{mlp}.DenseReluDense.wi_0.weight' in values
  layers = {
    'attention_norm': norm(0),
    'attention': attention('0.SelfAttention'),
    'mlp_norm': norm(mlp),
    'mlp': {
      **(
        {'gate': dense('wi_0'), 'up': dense('wi_1')}
        if gated
        else {'up': dense('wi')}
      ),
      'down': dense('wo'),
    },
  }
  if cross:
    layers['cross_attention_norm'] = norm(1)
    layers['cross_attention'] = attention('1.EncDecAttention')
  table = '.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  return {
    'layers': layers,
    'final_norm': {'scale': values[f'{side}.final_layer_norm.weight']},
    'relative': {'embedding': values[side + table]},
  }


def t5_params(values, tied):
  embeddings = {'token': {'embedding': values['shared.weight']}}
  if not tied:
    embeddings['readout_kernel'] = values['lm_head.weight'].T
  trunk = {side: stack_params(values, side) for side in LAYERS}
  return {
    'trunk': {'embeddings': embeddings, **trunk},
    'heads': {},
    'networks': {},
  }


def t5(kind, tied):
  """A model of transformers with random parameters."""
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=V,
      d_model=D,
      d_kv=K,
      d_ff=F,
      num_layers=LAYERS['encoder'],
      num_decoder_layers=LAYERS['decoder'],
      num_heads=H,
      feed_forward_proj=kind,
      tie_word_embeddings=tied,
    )
  )
  generator = torch.Generator().manual_seed(0)
  if not tied:
    model.lm_head.weight = torch.nn.Parameter(
      torch.randn(V, D, generator=generator)
    )
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(parameter * 0.5 + 0.1 * noise)
  return model.eval()


@pytest.mark.parametrize('kind', SHAPES)
def test_t5(kind):
  tied = kind == 'relu'
  theirs = t5(kind, tied)
  values = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  model = build(
    **SHAPES[kind],
    num_layers=LAYERS['decoder'],
    num_encoder_layers=LAYERS['encoder'],
  )
  # The inputs of the second row end in padding.
  batch = batch_of(pairs((M - 1, L)), pairs((7, L), seed=1))
  params = t5_params(values, tied)
  found = model.logits(params, model.hidden(params, batch))
  given = {
    'input_ids': batch.encoder_tokens_BxM,
    'attention_mask': batch.encoder_segment_BxM,
    'decoder_input_ids': batch.tokens_BxL,
  }
  with torch.no_grad():
    expected = theirs(
      **{k: torch.from_numpy(np.array(v)).long() for k, v in given.items()}
    ).logits.numpy()
  assert expected.std() > 0.1
  np.testing.assert_allclose(jnp.asarray(found), expected, atol=2e-4)


@pytest.mark.parametrize('bidirectional', [True, False])
def test_buckets(bidirectional):
  distance = np.arange(-300, 301)
  expected = modeling_t5.T5Attention._relative_position_bucket(
    torch.from_numpy(distance), bidirectional=bidirectional
  )
  found = relative_bias.bucket(distance, bidirectional=bidirectional)
  np.testing.assert_array_equal(found, expected.numpy())
