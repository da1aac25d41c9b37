"""Objectives that consist of a scorer's format, one a scorer."""

import dataclasses

import numpy as np

from lm import types
from lm.data import tokenizer
from lm.objectives import diffusion, layout

EOS, S0 = tokenizer.EOS, tokenizer.SENTINELS[0]


def at_mask(context, scored):
  """One token at a mask with nothing to its right, as for `masked`."""
  return diffusion.noised(context, scored, np.ones(len(scored), bool))


def last_span(context, scored, pair=layout.decoder):
  """The scored ids as the one, final span, as for `span`."""
  example = pair(np.append(context, S0), np.concatenate([[S0], scored, [EOS]]))
  weights_L = np.zeros(len(example.tokens_L), np.float32)
  start = len(weights_L) - len(scored) - 1
  weights_L[start : start + len(scored)] = 1
  return dataclasses.replace(example, weights_L=weights_L)


def two_sided_span(context, scored):
  return last_span(context, scored, layout.encoder_decoder)


# Scorer -> attention, continuation, tokens that it scores at most.
FORMATS = {
  'exact': ('causal', layout.causal_decoder, None),
  'conditional': ('prefix', layout.decoder, None),
  'blocks': ('prefix', last_span, 2),
  'left_to_right': ('bidirectional', at_mask, 1),
  'bound': ('bidirectional', None, None),
}


def make_objective(name, capacity=None, **changes):
  attention, continuation, continued = FORMATS[name]
  return types.Objective(
    **{
      'raw_length': 24,
      'capacity': capacity or types.Size(tokens=24),
      'sizes': None,
      'corrupt': None,
      'loss': None,
      'coefficients': {},
      'attention': attention,
      'scorer': name,
      'continuation': continuation,
      'scored_at_once': continued,
      **changes,
    }
  )
