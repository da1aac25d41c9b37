"""BERT base (Devlin et al. 2019): masked language modelling, without pairs.

python run.py --config=experiments/bert_base.py --config.data.path='FILES'
python run.py --config=experiments/bert_base.py:smoke    under a minute

It has 110,104,890 parameters: 109,482,240 as in the release with its pooler but
without its readout, and 622,650 in the masked readout (a layer, its norm, and a
bias on the logits; the matrix is the token embedding). The vocabulary has the
size of bert-base-uncased's and is trained on the given text. Rates and steps
are those of appendix A.2, with sequences of 512 from the start. The pooler is
for tasks; nothing in this run trains it, since there is no next-sentence
prediction, without which Liu et al. 2019, section 4.2, lost nothing. Dropout
applies to embeddings and residual branches, not to attention weights, and
matrices have an initial variance of 1 / fan-in instead of 0.02 squared.

Expected: table 6 of the paper reports a perplexity of 3.99 on masked tokens for
this size, on its own corpus and vocabulary, after four days on 16 TPU chips.
This file was never run at full size.
"""

from experiments import base
from lm import errors


def get_config(variant: str = ''):
  """Returns the config; `smoke` is small enough for two CPU cores."""
  config = base.get_config()
  # Replace this by your own text; the paper's is Wikipedia and books.
  config.data.source = 'files'
  config.data.path = 'corpus/*.jsonl.zst'
  config.data.tokenizer = 'unigram'
  config.data.vocab_size = 30_522
  config.data.sequence_length = 512
  config.data.batch_size = 256
  config.objective.name = 'masked'
  config.model.num_layers = 12
  config.model.width = 768
  config.model.num_heads = 12
  config.model.activation = 'gelu'
  config.model.position = 'learned'
  config.model.token_types = 2
  config.model.norm = 'layernorm'
  config.model.norm_epsilon = 1e-12
  config.model.norm_placement = 'post'
  config.model.embedding_norm = True
  config.model.bias = True
  config.model.readout = 'transform'
  config.model.heads = ('pooler',)
  config.model.dropout = 0.1
  config.optimizer.learning_rate = 1e-4
  config.optimizer.schedule = 'linear'
  config.optimizer.final_fraction = 0.0
  config.optimizer.warmup_steps = 10_000
  config.optimizer.weight_decay = 0.01
  config.optimizer.b2 = 0.999
  config.optimizer.epsilon = 1e-6
  config.train.steps = 1_000_000
  if variant == 'smoke':
    base.shrink(config)
    config.data.sequence_length = 128
  elif variant:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/bert_base.py; choose from "
      'smoke'
    )
  return config
