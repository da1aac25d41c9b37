"""Masked language modelling (Devlin et al. 2019, section 3.1).

python run.py --config=experiments/masked.py
python run.py --config=experiments/masked.py:smoke

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 2.018
bits per byte, scorer left_to_right (`python -m lm.objective_table`). At full
size it has not been run.
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; the stack is that of `causal`, but bidirectional."""
  config = causal.get_config(variant, name='masked')
  config.objective.name = 'masked'
  return config
