"""The GPT-2 and Llama shapes compute what transformers' models compute."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs torch')
transformers = pytest.importorskip('transformers', reason='needs transformers')

import jax.numpy as jnp
from test_transformer import GPT2, LLAMA, batch_of, build, run

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
