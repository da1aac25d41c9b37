"""Supervised pairs: docstrings to the code of their functions.

python run.py --config=experiments/supervised.py        encoder-decoder, 2 + 2
python run.py --config=experiments/supervised.py:deep      4 + 4
python run.py --config=experiments/supervised.py:decoder   one stack
python run.py --config=experiments/supervised.py:smoke

The pairs (Sutskever et al. 2014; Vaswani et al. 2017) come from Python's
standard library.

Expected of the smoke variant after 284 steps, one seed: a training loss of 2.50
nats a token (`python -m lm.objective_table`). At full size it has not been run.
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; see `causal.get_sided_config` for the variants."""
  config = causal.get_sided_config('supervised', variant)
  config.data.source = 'stdlib'
  config.data.target_column = 'code'
  return config
