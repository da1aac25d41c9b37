"""Training objectives, by name."""

from lm.data import tokenizer as tokenizer_lib
from lm.objectives import (
  base,
  causal,
  diffusion,
  masked,
  mixture,
  prefix,
  span,
  supervised,
)

OBJECTIVES = {
  'causal': causal.make,
  'prefix': prefix.make,
  'masked': masked.make,
  'diffusion': diffusion.make,
  'span': span.make,
  'mixture': mixture.make,
  'sequence': supervised.make,
}

# Objective -> the architectures that it can train; the first is the default.
ARCHITECTURES = {
  'causal': ('decoder',),
  'prefix': ('decoder', 'encoder_decoder'),
  'masked': ('encoder',),
  'diffusion': ('encoder',),
  'span': ('encoder_decoder', 'decoder'),
  'mixture': ('encoder_decoder', 'decoder'),
  'sequence': ('encoder_decoder', 'decoder'),
}

# Those that are trained on pairs, and on nothing else.
OF_PAIRS = ('sequence',)
# Those that are not: their spans would take in what separates a pair.
OF_TEXT = ('span', 'mixture')


def make(
  config, tokenizer: tokenizer_lib.Tokenizer | None = None
) -> base.Objective:
  """The objective that `objective.name` of a resolved config names.

  Args:
    tokenizer: what made the ids; without one every id below `data.vocab_size`
      that is not special counts as a piece of text.
  """
  return OBJECTIVES[config.objective.name](config, tokenizer)
