"""The smallest GPT-2 (Radford et al. 2019, table 2): 124,439,808 parameters.

python run.py --config=experiments/gpt2_124m.py --config.data.path='FILES'
python run.py --config=experiments/gpt2_124m.py:smoke    under a minute

The shape is that of the released model, with a vocabulary of the same size that
is trained on the given text. GPT-2's learning rate and number of steps were not
published; the ones here, and the batch size, are those of nanoGPT's
train_gpt2.py.

Expected: a loss of about 2.85 nats a token, which nanoGPT's README states for
that recipe on OpenWebText, after four days on eight A100. This file was never
run at full size.
"""

from experiments import base
from lm import errors


def get_config(variant: str = ''):
  """Returns the config; `smoke` is small enough for two CPU cores."""
  config = base.get_config()
  # Replace this by your own text; nanoGPT's is OpenWebText.
  config.data.source = 'files'
  config.data.path = 'corpus/*.jsonl.zst'
  config.data.tokenizer = 'bpe'
  config.data.vocab_size = 50_257
  config.data.sequence_length = 1024
  config.data.batch_size = 480
  config.model.num_layers = 12
  config.model.width = 768
  config.model.num_heads = 12
  config.model.activation = 'gelu_tanh'
  config.model.position = 'learned'
  config.model.norm = 'layernorm'
  config.model.bias = True
  config.model.dtype = 'bfloat16'
  config.optimizer.learning_rate = 6e-4
  config.optimizer.warmup_steps = 2000
  config.train.steps = 600_000
  config.train.loss_chunk = 256
  if variant == 'smoke':
    base.shrink(config)
    config.data.sequence_length = 128
    config.train.loss_chunk = 0
  elif variant:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/gpt2_124m.py; choose from "
      'smoke'
    )
  return config
