"""Span corruption (Raffel et al. 2020, section 3.1.4).

python run.py --config=experiments/span.py             encoder-decoder, 2 + 2
python run.py --config=experiments/span.py:deep        4 + 4
python run.py --config=experiments/span.py:decoder     one stack
python run.py --config=experiments/span.py:smoke

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 2.022
bits per byte, scorer blocks (`python -m lm.objective_table`). At full size it
has not been run.
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; see `causal.get_sided_config` for the variants."""
  return causal.get_sided_config('span', variant)
