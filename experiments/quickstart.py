"""The quick start: a small causal Transformer on presidential messages.

python run.py
python run.py --config=experiments/quickstart.py:smoke
"""

from experiments import base
from lm import errors


def get_config(variant: str = ''):
  """`smoke` does all of it in under a minute."""
  config = base.get_config()
  if variant == 'smoke':
    config.data.vocab_size = 4096
    config.data.sequence_length = 64
    config.data.batch_size = 8
    config.model.num_layers = 2
    config.model.width = 64
    config.model.num_heads = 2
    config.optimizer.warmup_steps = 10
    config.optimizer.learning_rate = 3e-3
    config.train.steps = 100
    config.train.log_every = 10
    config.train.evaluate_every = 50
    config.train.checkpoint_every = 50
    config.generate.max_tokens = 32
    config.generate.samples = 2
  elif variant:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/quickstart.py; choose from "
      'smoke'
    )
  return config
