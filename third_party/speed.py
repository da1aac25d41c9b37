"""Compares the speed of the train step with that of other people's code.

git clone https://github.com/google-deepmind/nanodo
git clone https://github.com/karpathy/nanoGPT
python third_party/speed.py --nanodo=nanodo --nanogpt=nanoGPT
python third_party/speed.py --shape=masked
python third_party/speed.py --shape=span

The comparison needs torch (for nanoGPT) and transformers (BertForMaskedLM,
T5ForConditionalGeneration), both run eagerly. All models have 6 layers, width
384, 6 heads, an MLP of 1,536 with one activation and no gate, 16 rows, float32,
AdamW and no dropout. The rest depends on `--shape`:

  causal  vocabulary 8,192, 256 tokens a row, GELU, layer norms, learned
          positions, tied embeddings; also, the matrix products of this
          project's step alone
  masked  vocabulary 32,768, 256 tokens a row of which 15 % are predicted, GELU;
          this project's step also with the logits of every position
  span    vocabulary 8,192, 3 + 3 layers, 256 positions of the encoder and 58 of
          the decoder, ReLU

`ours` is this project's step on random ids. Each step is measured in its own
process, in turn and several times; the medians and their ratios are printed.
Tokens are positions of both sides.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
B, N, D, H, F = 16, 6, 384, 6, 1536
L = 256
TARGETS = 58  # positions of T5's decoder
VOCABULARY = {'causal': 8192, 'masked': 32768, 'span': 8192}
_COMMON = {
  'data.batch_size': B,
  'data.sequence_length': L,
  'model.num_layers': N,
  'model.width': D,
  'model.num_heads': H,
  'model.mlp_width': F,
  'model.activation': 'gelu_tanh',
  'model.norm': 'layernorm',
  'optimizer.name': 'adamw',
}
_OURS = {
  'causal': {'model.position': 'learned'},
  'masked': {'objective.name': 'masked'},
  'span': {
    'objective.name': 'span',
    'data.sequence_length': L + TARGETS,
    'model.num_layers': N // 2,
    'model.activation': 'relu',
    'model.norm': 'rmsnorm',
  },
}


def main():
  """Measures each step in its own process, in turn, and prints the ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shape', choices=_OURS, default='causal')
  parser.add_argument('--nanodo', help='a clone of nanodo')
  parser.add_argument('--nanogpt', help='a clone of nanoGPT')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--set', nargs='*', default=[], help='config.field=value')
  parser.add_argument('--measure', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.measure:
    speed = MEASURES[given.shape][given.measure](given)
    print(json.dumps({'tokens_per_second': speed}))
    return
  names = [
    name
    for name in MEASURES[given.shape]
    if not hasattr(given, name) or getattr(given, name)
  ]
  found = {name: [] for name in names}
  for _ in range(given.rounds):
    for name in names:
      found[name].append(_run(name))
  medians = {name: statistics.median(speeds) for name, speeds in found.items()}
  for name, speeds in found.items():
    ratio = medians['ours'] / medians[name]
    each = ' '.join(f'{speed:,.0f}' for speed in speeds)
    print(
      f'{name:<11}{medians[name]:>8,.0f} tokens/s ({each})'
      + (f'; ours is {ratio:.2f} times as fast' if name != 'ours' else '')
    )


def _run(name: str) -> float:
  command = [sys.executable, __file__, *sys.argv[1:], f'--measure={name}']
  output = subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True
  ).stdout
  return json.loads(output.splitlines()[-1])['tokens_per_second']


def _median_speed(step, tokens: int) -> float:
  for _ in range(3):
    step()
  seconds = []
  for _ in range(12):
    began = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - began)
  return tokens / statistics.median(seconds)


def _ours(given, *, all_logits: bool = False) -> float:
  """Measures this project's step on rows of random ids."""
  sys.path.insert(0, str(ROOT))
  from lm.runtime import malloc

  malloc.keep()  # As run.py does.
  import jax
  import numpy as np

  from experiments import base
  from lm import models, objectives, types
  from lm.config import resolve as config_lib
  from lm.data import packing
  from lm.runtime import sharding
  from lm.training import program

  config = base.get_config()
  config.data.vocab_size = VOCABULARY[given.shape]
  chosen = dict(map(_parse, given.set))
  fields = {**_COMMON, **_OURS[given.shape], **chosen}
  for field, value in fields.items():
    *sections, name = field.split('.')
    section = config
    for part in sections:
      section = section[part]
    section[name] = value
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  if all_logits:
    capacity = dataclasses.replace(objective.capacity, predictions=0)
    objective = dataclasses.replace(objective, capacity=capacity)
  mesh = sharding.make_mesh(config)
  model = models.make(config, objective, mesh)
  made = program.make(config, objective, model, mesh)
  compiled, state = made.compile(), made.init()
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(B):
    ids = rng.integers(526, config.data.vocab_size, objective.raw_length)
    record = types.Record(
      ids_L=ids.astype(np.int32), word_L=np.arange(len(ids))
    )
    rows.append(
      packing.pack(
        objective.corrupt(record, rng), objective.capacity, objective.arrays
      )
    )
  batch = made.put(packing.stack(rows))

  def step():
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)

  return _median_speed(step, B * config.data.sequence_length)


def _parse(pair: str) -> tuple[str, object]:
  """'model.width=64' -> 'model.width', 64; a value that is not JSON is text."""
  field, value = pair.split('=', 1)
  try:
    return field, json.loads(value)
  except ValueError:
    return field, value


def _ours_all_logits(given) -> float:
  return _ours(given, all_logits=True)


def _matrix_products(given) -> float:
  """Measures the matrix products of our causal step, each compiled alone.

  They are each product and the two of its gradient; those of attention are in
  causal blocks. No step that multiplies these matrices with XLA can be faster.
  """
  sys.path.insert(0, str(ROOT))
  from lm.runtime import malloc

  malloc.keep()
  import jax
  import jax.numpy as jnp
  import numpy as np

  from lm.models import attention

  rng = np.random.default_rng(0)

  def best(count, formula, *shapes):
    """Seconds of `count` products and of those of their gradients."""
    arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    names, out = formula.split('->')
    a, b = names.split(',')
    gradient = jnp.asarray(jnp.einsum(formula, *arrays))
    operands = {a: arrays[0], b: arrays[1], out: gradient}
    total = 0.0
    for x, y, z in ((a, b, out), (out, b, a), (a, out, b)):
      product = jax.jit(lambda p, q, f=f'{x},{y}->{z}': jnp.einsum(f, p, q))
      seconds = []
      for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready(product(operands[x], operands[y]))
        seconds.append(time.perf_counter() - began)
      total += statistics.median(seconds[1:])
    return count * total

  K, V = D // H, VOCABULARY['causal']
  seconds = [
    best(4 * N, 'ld,de->le', (B * L, D), (D, D)),
    best(N, 'ld,df->lf', (B * L, D), (D, F)),
    best(N, 'lf,fd->ld', (B * L, F), (F, D)),
    best(1, 'ld,dv->lv', (B * L, D), (D, V)),
  ]
  for start, end in attention.query_blocks(L):
    queries, keys = (B, end - start, H, K), (B, end, H, K)
    weights = (B, H, end - start, end)
    seconds += [
      best(N, 'blhk,bmhk->bhlm', queries, keys),
      best(N, 'bhlm,bmhk->blhk', weights, keys),
    ]
  return B * L / sum(seconds)


def _nanodo(given) -> float:
  """Measures nanodo's model and optimizer, which counts accumulation steps."""
  sys.path.insert(0, str(pathlib.Path(given.nanodo).resolve()))
  import jax
  import jax.numpy as jnp
  import ml_collections
  import optax
  from nanodo import model as nanodo_model, optimizer as nanodo_optimizer

  vocabulary = VOCABULARY['causal']
  config = nanodo_model.DoConfig(
    D=D, H=H, L=L, N=N, V=vocabulary, F=F, fsdp_enabled=False
  )
  model = nanodo_model.TransformerDo(config)
  optimizer = nanodo_optimizer.get_optimizer(
    ml_collections.ConfigDict(
      {
        'optimizer': 'adamw',
        'init_learning_rate': 1e-5,
        'peak_learning_rate': 1e-3,
        'final_learning_rate': 1e-4,
        'warmup_steps': 100,
        'num_train_steps': 1000,
        'b2': 0.95,
        'weight_decay': 0.1,
        'clip_by_global_norm': 1.0,
      }
    )
  )
  key = jax.random.PRNGKey(0)
  ids_BxL = jax.random.randint(key, (B, L), 526, vocabulary)
  params = model.init(key, ids_BxL)
  state = [params, optimizer.init(params)]

  def train_step(params, slots, ids_BxL):
    def loss(params):
      logits_BxLxV = model.apply(params, ids_BxL)
      nll_BxL = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits_BxLxV, jnp.roll(ids_BxL, -1, axis=1)
      )
      return jnp.mean(nll_BxL)

    value, gradients = jax.value_and_grad(loss)(params)
    updates, slots = optimizer.update(gradients, slots, params)
    return optax.apply_updates(params, updates), slots, value

  compiled = jax.jit(train_step, donate_argnums=(0, 1))

  def step():
    *state[:], value = compiled(*state, ids_BxL)
    jax.block_until_ready(value)

  return _median_speed(step, B * L)


def _nanogpt(given) -> float:
  sys.path.insert(0, str(pathlib.Path(given.nanogpt).resolve()))
  import torch
  from model import GPT, GPTConfig

  torch.manual_seed(0)
  vocabulary = VOCABULARY['causal']
  config = GPTConfig(
    block_size=L,
    vocab_size=vocabulary,
    n_layer=N,
    n_head=H,
    n_embd=D,
    bias=False,
  )
  model = GPT(config)
  optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
  ids_BxL = torch.randint(526, vocabulary, (B, L))
  targets_BxL = ids_BxL.roll(-1, dims=1)
  return _torch_speed(model, optimizer, lambda: model(ids_BxL, targets_BxL)[1])


def _bert(given) -> float:
  """Measures BERT with 15 % of the labels; its readout computes all logits."""
  del given
  import torch
  import transformers

  torch.manual_seed(0)
  model = transformers.BertForMaskedLM(
    transformers.BertConfig(
      vocab_size=VOCABULARY['masked'],
      hidden_size=D,
      num_hidden_layers=N,
      num_attention_heads=H,
      intermediate_size=F,
      max_position_embeddings=L,
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
    )
  ).train()
  ids_BxL = torch.randint(526, VOCABULARY['masked'], (B, L))
  labels_BxL = ids_BxL.where(torch.rand(B, L) < 0.15, -100)
  return _torch_speed(
    model,
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
    lambda: model(input_ids=ids_BxL, labels=labels_BxL).loss,
  )


def _t5(given) -> float:
  del given
  import torch
  import transformers

  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=VOCABULARY['span'],
      d_model=D,
      d_kv=D // H,
      d_ff=F,
      num_layers=N // 2,
      num_decoder_layers=N // 2,
      num_heads=H,
      dropout_rate=0.0,
      decoder_start_token_id=0,
    )
  ).train()
  ids_BxM = torch.randint(526, VOCABULARY['span'], (B, L))
  labels_BxL = torch.randint(526, VOCABULARY['span'], (B, TARGETS))
  return _torch_speed(
    model,
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
    lambda: model(input_ids=ids_BxM, labels=labels_BxL).loss,
    tokens=B * (L + TARGETS),
  )


def _torch_speed(model, optimizer, loss, tokens: int = B * L) -> float:
  """Measures an eager step, its gradient clipped like ours."""
  import torch

  def step():
    loss().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return _median_speed(step, tokens)


# Shape -> name -> measurement; one named like a flag needs the flag's value.
MEASURES = {
  'causal': {
    'ours': _ours,
    'products': _matrix_products,
    'nanodo': _nanodo,
    'nanogpt': _nanogpt,
  },
  'masked': {'ours': _ours, 'all_logits': _ours_all_logits, 'bert': _bert},
  'span': {'ours': _ours, 't5': _t5},
}


if __name__ == '__main__':
  main()
