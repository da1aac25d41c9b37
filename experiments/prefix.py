"""Prefix language modelling (Liu et al. 2018; Raffel et al. 2020, 3.2).

python run.py --config=experiments/prefix.py           one stack
python run.py --config=experiments/prefix.py:sides     encoder-decoder, 2 + 2
python run.py --config=experiments/prefix.py:deep      encoder-decoder, 4 + 4
python run.py --config=experiments/prefix.py:smoke     one stack

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 1.879
bits per byte, scorer conditional (`python -m lm.objective_table`). At full size
it has not been run.
"""

from experiments import causal

_SIDED = {'sides': '', 'deep': 'deep'}


def get_config(variant: str = ''):
  """Returns the config; `sides` and `deep` are encoder-decoders."""
  if variant in _SIDED:
    return causal.get_sided_config('prefix', _SIDED[variant])
  config = causal.get_config(variant, name='prefix', more=_SIDED)
  config.objective.name = 'prefix'
  return config
