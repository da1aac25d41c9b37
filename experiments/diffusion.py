"""Masked diffusion with LLaDA's estimator (Nie et al. 2025, section 2.2).

python run.py --config=experiments/diffusion.py
python run.py --config=experiments/diffusion.py:smoke

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 2.000
bits per byte, scorer bound (`python -m lm.objective_table`). At full size it
has not been run.
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; the stack is that of `causal`, but bidirectional."""
  config = causal.get_config(variant, name='diffusion')
  config.objective.name = 'diffusion'
  return config
