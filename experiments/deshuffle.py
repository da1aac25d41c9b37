"""Deshuffling (Raffel et al. 2020, section 3.3.1).

python run.py --config=experiments/deshuffle.py           encoder-decoder, 2 + 2
python run.py --config=experiments/deshuffle.py:deep      4 + 4
python run.py --config=experiments/deshuffle.py:decoder   one stack
python run.py --config=experiments/deshuffle.py:smoke
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; see `causal.get_sided_config` for the variants."""
  return causal.get_sided_config('deshuffle', variant)
