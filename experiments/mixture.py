"""UL2's mixture of denoisers (Tay et al. 2022, section 3.1).

python run.py --config=experiments/mixture.py           an encoder-decoder
python run.py --config=experiments/mixture.py:deep      4 + 4
python run.py --config=experiments/mixture.py:decoder   one stack
python run.py --config=experiments/mixture.py:smoke

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 1.937
bits per byte, scorer conditional (`python -m lm.objective_table`). At full size
it has not been run.
"""

from experiments import causal


def get_config(variant: str = ''):
  """Returns the config; see `causal.get_sided_config` for the variants."""
  return causal.get_sided_config('mixture', variant)
