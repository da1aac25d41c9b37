"""T5 base, version 1.0 (Raffel et al. 2020): 222,903,552 parameters.

python run.py --config=experiments/t5_base.py --config.data.path='FILES'
python run.py --config=experiments/t5_base.py:smoke    under a minute

The paper's baseline, section 3.1: twelve layers a side of width 768, 32,128 ids
and span corruption at 15 % in spans of 3. For differences see
experiments/t5_small.py.

Expected: no pre-training loss is published as a figure; the paper's tables
report tasks after it. This file was never run at full size.
"""

from experiments import t5_small


def get_config(variant: str = ''):
  """Returns the config; `smoke` is small enough for two CPU cores."""
  config = t5_small.get_config(variant, name='t5_base')
  if not variant:
    config.model.num_layers = 12
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3072
  return config
