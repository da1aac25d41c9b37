"""Next-token prediction at the size at which objectives are compared.

python run.py --config=experiments/causal.py
python run.py --config=experiments/causal.py:smoke

The experiments of all objectives share this width, these texts (except
`supervised`, which needs pairs), this number of steps and the pre-norm rotary
stack (Llama's shape, Touvron et al. 2023); only the predictions differ.

Expected of the smoke variant on 100,000 raw tokens, 4 windows, one seed: 1.836
bits per byte, scorer exact (`python -m lm.objective_table`). At full size it
has not been run.
"""

from collections.abc import Iterable

from experiments import quickstart
from lm import errors


def get_config(
  variant: str = '', *, name: str = 'causal', more: Iterable[str] = ()
):
  """Returns the config; `smoke` runs in under a minute.

  Args:
    name: name of the experiment, for messages.
    more: its other variants, for messages.
  """
  if variant not in ('', 'smoke'):
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/{name}.py; choose from "
      f'{", ".join(["smoke", *more])}'
    )
  config = quickstart.get_config(variant)
  # Some scorers read a window hundreds of times, and all score the same ones.
  config.evaluate.windows = 50
  if variant == 'smoke':
    config.evaluate.windows = 4
  else:
    config.model.num_layers = 4
  return config


def get_sided_config(name: str, variant: str = ''):
  """Returns the config of an objective with inputs and targets.

  Without a variant, the model is an encoder-decoder with half of the layers on
  either side, so that it has about as many parameters. `deep` has all layers on
  both sides, T5's convention; `decoder` is one stack that reads inputs and
  targets; `smoke` is a small encoder-decoder.
  """
  variants = ('', 'deep', 'decoder', 'smoke')
  if variant not in variants:
    raise errors.UserError(
      f"unknown variant ':{variant}' of experiments/{name}.py; choose from "
      f'{", ".join(variants[1:])}'
    )
  config = get_config('smoke' if variant == 'smoke' else '', name=name)
  config.objective.name = name
  if variant == 'decoder':
    config.model.architecture = 'decoder'
    return config
  config.model.architecture = 'encoder_decoder'
  if variant != 'deep':
    config.model.num_layers //= 2
  return config
