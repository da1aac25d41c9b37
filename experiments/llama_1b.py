"""Llama 3.2 1B's shape (Grattafiori et al. 2024): 1,235,814,400 parameters.

python run.py --config=experiments/llama_1b.py --config.data.path='FILES' \\
  --config.mesh.fsdp=8
python run.py --config=experiments/llama_1b.py:smoke    under a minute

Layers, widths, heads, the rotary base and the tied vocabulary of 128,256 are
those of the released model's config.json; its scaling of rotary angles, for
contexts beyond 8,192, is left out. The budget is that of Hoffmann et al. 2022,
table 3, for 1 B parameters: 20.2 tokens a parameter.

Expected: no published figure is comparable. According to its model card, the
release was distilled from larger models on up to 9 T tokens. This file was
never run at full size.
"""

from experiments import base
from lm import errors


def get_config(variant: str = ''):
  """Returns the config; `smoke` is small enough for two CPU cores."""
  config = base.get_config()
  # Replace this by your own text, 25 billion tokens of it.
  config.data.source = 'files'
  config.data.path = 'corpus/*.jsonl.zst'
  config.data.tokenizer = 'bpe'
  config.data.vocab_size = 128_256
  config.data.sequence_length = 8192
  config.data.batch_size = 128
  config.model.num_layers = 16
  config.model.width = 2048
  config.model.num_heads = 32
  config.model.num_kv_heads = 8
  config.model.mlp_width = 8192
  config.model.rotary_base = 500_000.0
  config.model.dtype = 'bfloat16'
  config.model.remat = 'dots'
  config.optimizer.learning_rate = 3e-4
  config.train.tokens = 25_000_000_000
  config.train.loss_chunk = 512
  if variant == 'smoke':
    base.shrink(config)
    config.data.sequence_length = 128
    config.train.loss_chunk = 0
    config.train.tokens = None
    config.model.num_kv_heads = 1
    config.model.mlp_width = 256
  elif variant:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/llama_1b.py; choose from "
      'smoke'
    )
  return config
