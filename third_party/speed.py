"""Speed of the train step beside nanodo's and nanoGPT's, on this machine.

git clone https://github.com/google-deepmind/nanodo
git clone https://github.com/karpathy/nanoGPT
python third_party/speed.py --nanodo=nanodo --nanogpt=nanoGPT

Needs torch for nanoGPT, run eagerly. One shape for all: 6 layers, width 384, 6
heads, an MLP of 1,536 with GELU and no gate, layer norms without bias, learned
positions, tied embeddings, vocabulary 8,192, 16 rows of 256 tokens, float32,
AdamW, no dropout. Each is measured in a process of its own, in turn, several
times over; printed are the medians and what they are to one another.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
V, L, B, N, D, H, F = 8192, 256, 16, 6, 384, 6, 1536
_OURS = {
  'data.vocab_size': V,
  'data.sequence_length': L,
  'data.batch_size': B,
  'model.num_layers': N,
  'model.width': D,
  'model.num_heads': H,
  'model.mlp_width': F,
  'model.activation': 'gelu_tanh',
  'model.norm': 'layernorm',
  'model.position': 'learned',
  'optimizer.name': 'adamw',
}


def main():
  """Measures in turn, each in a process of its own, and prints the ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--nanodo', help='a clone of nanodo')
  parser.add_argument('--nanogpt', help='a clone of nanoGPT')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--measure', choices=_PEERS, help=argparse.SUPPRESS)
  parser.add_argument('--set', nargs='*', default=[], help='config.field=value')
  given = parser.parse_args()
  if given.measure:
    path = pathlib.Path(getattr(given, given.measure)).resolve()
    sys.path.insert(0, str(path))
    print(json.dumps({'tokens_per_second': _PEERS[given.measure]()}))
    return
  peers = [name for name in _PEERS if getattr(given, name)]
  found = {name: [] for name in ('ours', *peers)}
  for _ in range(given.rounds):
    found['ours'].append(_run(_our_command(given.set)))
    for name in peers:
      path = f'--{name}={getattr(given, name)}'
      command = [sys.executable, __file__, f'--measure={name}', path]
      found[name].append(_run(command))
  medians = {name: statistics.median(speeds) for name, speeds in found.items()}
  for name, speeds in found.items():
    ratio = medians['ours'] / medians[name]
    each = ' '.join(f'{speed:,.0f}' for speed in speeds)
    print(
      f'{name:<8}{medians[name]:>8,.0f} tokens/s ({each})'
      + (f'; ours is {ratio:.2f} times as fast' if name != 'ours' else '')
    )


def _our_command(overrides: list[str]) -> list[str]:
  fields = [f'--config.{name}={value}' for name, value in _OURS.items()]
  fields += [f'--config.{override}' for override in overrides]
  config = f'--config={ROOT / "experiments" / "base.py"}'
  return [
    *(sys.executable, str(ROOT / 'run.py'), config, '--mode=benchmark'),
    *fields,
  ]


def _run(command: list[str]) -> float:
  output = subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
  ).stdout
  return json.loads(output.splitlines()[-1])['tokens_per_second']


def _median_speed(step) -> float:
  for _ in range(3):
    step()
  seconds = []
  for _ in range(12):
    began = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - began)
  return B * L / statistics.median(seconds)


def _nanodo() -> float:
  """Its model and its optimizer, which counts steps to accumulate over."""
  import jax
  import jax.numpy as jnp
  import ml_collections
  import optax
  from nanodo import model as nanodo_model, optimizer as nanodo_optimizer

  config = nanodo_model.DoConfig(
    D=D, H=H, L=L, N=N, V=V, F=F, fsdp_enabled=False
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
  ids_BxL = jax.random.randint(key, (B, L), 526, V)
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

  return _median_speed(step)


def _nanogpt() -> float:
  import torch
  from model import GPT, GPTConfig

  torch.manual_seed(0)
  config = GPTConfig(
    block_size=L, vocab_size=V, n_layer=N, n_head=H, n_embd=D, bias=False
  )
  model = GPT(config)
  optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
  ids_BxL = torch.randint(526, V, (B, L))
  targets_BxL = ids_BxL.roll(-1, dims=1)

  def step():
    _, loss = model(ids_BxL, targets_BxL)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return _median_speed(step)


_PEERS = {'nanodo': _nanodo, 'nanogpt': _nanogpt}


if __name__ == '__main__':
  main()
