"""T5 small, version 1.0 (Raffel et al. 2020): 60,506,624 parameters.

python run.py --config=experiments/t5_small.py --config.data.path='FILES'
python run.py --config=experiments/t5_small.py:smoke    under a minute

The model has six layers a side of width 512 and 32,128 ids, and is trained by
span corruption at 15 % in spans of 3, with batches of 128 rows and 2^19 steps.
The learning rate is that of section 3.1.2, 1 / sqrt(max(step, 10,000)), but
with a linear warmup where the paper's is constant; Adafactor multiplies it by
each matrix's size. Dropout applies to the embeddings and the residual branches;
the paper's also applies to attention weights and inside MLPs.

Expected: no pre-training loss is published for this size. This file was never
run at full size.
"""

from experiments import base
from lm import errors


def get_config(variant: str = '', *, name: str = 't5_small'):
  """Returns the config; `smoke` is small enough for two CPU cores."""
  config = base.get_config()
  # Replace this by your own text; the paper's is C4.
  config.data.source = 'files'
  config.data.path = 'corpus/*.jsonl.zst'
  config.data.tokenizer = 'unigram'
  config.data.vocab_size = 32_128
  # 512 positions of the encoder, and 114 of the decoder.
  config.data.sequence_length = 626
  config.data.batch_size = 128
  config.objective.name = 'span'
  config.model.architecture = 'encoder_decoder'
  config.model.num_layers = 6
  config.model.width = 512
  config.model.num_heads = 8
  config.model.head_size = 64
  config.model.mlp_width = 2048
  config.model.activation = 'relu'
  config.model.position = 'relative'
  config.model.norm_epsilon = 1e-6
  config.model.scale_attention = False
  config.model.scale_readout = True
  config.model.dropout = 0.1
  config.optimizer.name = 'adafactor'
  config.optimizer.learning_rate = 1e-2
  config.optimizer.schedule = 'inverse_sqrt'
  config.optimizer.warmup_steps = 10_000
  config.optimizer.clip_norm = 0.0
  config.train.steps = 524_288
  if variant == 'smoke':
    base.shrink(config)
    config.data.sequence_length = 156
    config.model.head_size = 32
    config.model.mlp_width = 256
  elif variant:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/{name}.py; choose from "
      'smoke'
    )
  return config
