"""GPT-2, Llama and BERT shapes compute what transformers' models compute."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs torch')
transformers = pytest.importorskip('transformers', reason='needs transformers')

import dataclasses

import jax.numpy as jnp
from helpers.decoders import BERT, GPT2, LLAMA, batch_of, build, run

V, D, N, H, F, L = 528, 32, 2, 4, 64, 32


def arrays(model):
  return {
    name: value.detach().numpy() for name, value in model.state_dict().items()
  }


def perturbed(model):
  """Every parameter random, so that none is hidden by its initial value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(parameter * 0.5 + 0.1 * noise)
  return model.eval()


def stacked(values, pattern, convert):
  return np.stack([convert(values[pattern.format(i)]) for i in range(N)])


def gpt2_params(values):
  def part(index):
    # One matrix holds queries, keys and values.
    split = lambda w: np.split(w, 3, axis=-1)[index]
    return {
      'kernel': stacked(
        values,
        'transformer.h.{}.attn.c_attn.weight',
        lambda w: split(w).reshape(D, H, D // H),
      ),
      'bias': stacked(
        values,
        'transformer.h.{}.attn.c_attn.bias',
        lambda b: split(b).reshape(H, D // H),
      ),
    }

  def dense(name, shape=None):
    return {
      'kernel': stacked(
        values,
        f'transformer.h.{{}}.{name}.weight',
        lambda w: w.reshape(shape) if shape else w,
      ),
      'bias': stacked(values, f'transformer.h.{{}}.{name}.bias', np.asarray),
    }

  def norm(name):
    return {
      'scale': stacked(values, f'transformer.h.{{}}.{name}.weight', np.asarray),
      'bias': stacked(values, f'transformer.h.{{}}.{name}.bias', np.asarray),
    }

  return {
    'embeddings': {
      'token': {'embedding': values['transformer.wte.weight']},
      'position': {'embedding': values['transformer.wpe.weight']},
    },
    'layers': {
      'attention_norm': norm('ln_1'),
      'mlp_norm': norm('ln_2'),
      'attention': {
        'query': part(0),
        'key': part(1),
        'value': part(2),
        'out': dense('attn.c_proj', (H, D // H, D)),
      },
      'mlp': {'up': dense('mlp.c_fc'), 'down': dense('mlp.c_proj')},
    },
    'final_norm': {
      'scale': values['transformer.ln_f.weight'],
      'bias': values['transformer.ln_f.bias'],
    },
  }


def llama_params(values):
  def dense(name, convert=np.transpose):
    pattern = f'model.layers.{{}}.{name}.weight'
    return {'kernel': stacked(values, pattern, convert)}

  def heads(count):
    return lambda w: w.T.reshape(D, count, D // H)

  def norm(name):
    pattern = f'model.layers.{{}}.{name}.weight'
    return {'scale': stacked(values, pattern, np.asarray)}

  return {
    'embeddings': {
      'token': {'embedding': values['model.embed_tokens.weight']},
      'readout_kernel': values['lm_head.weight'].T,
    },
    'layers': {
      'attention_norm': norm('input_layernorm'),
      'mlp_norm': norm('post_attention_layernorm'),
      'attention': {
        'query': dense('self_attn.q_proj', heads(H)),
        'key': dense('self_attn.k_proj', heads(2)),
        'value': dense('self_attn.v_proj', heads(2)),
        'out': dense('self_attn.o_proj', lambda w: w.T.reshape(H, D // H, D)),
      },
      'mlp': {
        'gate': dense('mlp.gate_proj'),
        'up': dense('mlp.up_proj'),
        'down': dense('mlp.down_proj'),
      },
    },
    'final_norm': {'scale': values['model.norm.weight']},
  }


def assert_same_logits(model, params, theirs):
  batch = batch_of([[L], [L]], L)
  found = run(model, {'trunk': params, 'heads': {}, 'networks': {}}, batch)
  with torch.no_grad():
    ids = torch.from_numpy(np.array(batch.tokens_BxL)).long()
    expected = theirs(input_ids=ids).logits.numpy()
  assert expected.std() > 0.1
  np.testing.assert_allclose(jnp.asarray(found), expected, atol=2e-4)


def test_gpt2(config):
  theirs = perturbed(
    transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        vocab_size=V, n_positions=L, n_embd=D, n_layer=N, n_head=H, n_inner=F
      )
    )
  )
  assert_same_logits(build(config, **GPT2), gpt2_params(arrays(theirs)), theirs)


def test_llama(config):
  theirs = perturbed(
    transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=N,
        num_attention_heads=H,
        num_key_value_heads=2,
        max_position_embeddings=L,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
      )
    )
  )
  assert_same_logits(
    build(config, **LLAMA), llama_params(arrays(theirs)), theirs
  )


def bert_params(values):
  def dense(name, shape=None, bias_shape=None):
    pattern = f'bert.encoder.layer.{{}}.{name}'
    return {
      'kernel': stacked(
        values, f'{pattern}.weight', lambda w: w.T.reshape(shape or w.T.shape)
      ),
      'bias': stacked(
        values, f'{pattern}.bias', lambda b: b.reshape(bias_shape or b.shape)
      ),
    }

  def heads(name):
    return dense(f'attention.self.{name}', (D, H, D // H), (H, D // H))

  def norm(name):
    pattern = f'bert.encoder.layer.{{}}.{name}.LayerNorm'
    return {
      'scale': stacked(values, f'{pattern}.weight', np.asarray),
      'bias': stacked(values, f'{pattern}.bias', np.asarray),
    }

  def one(name, kernel='kernel', convert=np.transpose):
    return {
      kernel: convert(values[f'{name}.weight']),
      'bias': values[f'{name}.bias'],
    }

  def table(name):
    return {'embedding': values[f'bert.embeddings.{name}_embeddings.weight']}

  return {
    'embeddings': {
      'token': table('word'),
      'position': table('position'),
      'type': table('token_type'),
      'norm': one('bert.embeddings.LayerNorm', 'scale', np.asarray),
      'transform': one('cls.predictions.transform.dense'),
      'transform_norm': one(
        'cls.predictions.transform.LayerNorm', 'scale', np.asarray
      ),
      'readout_bias': values['cls.predictions.bias'],
    },
    'layers': {
      'attention': {
        'query': heads('query'),
        'key': heads('key'),
        'value': heads('value'),
        'out': dense('attention.output.dense', (H, D // H, D)),
      },
      'attention_norm': norm('attention.output'),
      'mlp': {
        'up': dense('intermediate.dense'),
        'down': dense('output.dense'),
      },
      'mlp_norm': norm('output'),
    },
  }


def test_bert(config):
  """Logits of masked language modelling, and the pooler."""
  shape = transformers.BertConfig(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=N,
    num_attention_heads=H,
    intermediate_size=F,
    max_position_embeddings=L,
  )
  theirs = perturbed(transformers.BertForMaskedLM(shape))
  pooler = perturbed(transformers.BertModel(shape)).pooler
  model = build(config, 'bidirectional', **BERT)
  params = {
    'trunk': bert_params(arrays(theirs)),
    'heads': {
      'pooler': {
        'dense': {
          'kernel': pooler.dense.weight.detach().numpy().T,
          'bias': pooler.dense.bias.detach().numpy(),
        }
      }
    },
    'networks': {},
  }
  # One row ends in padding; the second sentence begins in the middle.
  batch = batch_of([[L], [L - 9]], L)
  types = (jnp.arange(L) > L // 2).astype(jnp.int32)[None].repeat(2, axis=0)
  batch = dataclasses.replace(
    batch, order_BxL=jnp.zeros((2, L), jnp.int32), type_BxL=types
  )
  hidden = model.hidden(params, batch)
  logits = model.logits(params, hidden)
  pooled = model.head('pooler', params, hidden[:, :1])[:, 0]
  given = {
    'input_ids': batch.tokens_BxL,
    'token_type_ids': batch.type_BxL,
    'attention_mask': batch.segment_BxL,
  }
  given = {k: torch.from_numpy(np.array(v)).long() for k, v in given.items()}
  with torch.no_grad():
    expected = theirs(**given).logits.numpy()
    last = theirs.bert(**given).last_hidden_state
    expected_pooled = pooler(last).numpy()
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits[0], expected[0], atol=2e-4)
  np.testing.assert_allclose(
    logits[1, : L - 9], expected[1, : L - 9], atol=2e-4
  )
  np.testing.assert_allclose(pooled, expected_pooled, atol=1e-4)
