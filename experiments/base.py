"""The shape of a config, section by section. Experiments change a few fields.

A field is declared in the file that reads it, as FIELDS, with its default, its
meaning, its range and when it has an effect. `python run.py --help=SECTION`
prints the fields of a section. Declared here are those that only a mode reads,
and what joins two folders.
"""

from ml_collections import config_dict

from lm import field, models, objectives
from lm.data import (
  collect,
  packing,
  pipeline,
  prepare,
  sources,
  splits,
  tokenizer,
)
from lm.evaluation import scorer, validation
from lm.generation import (
  beam,
  completion,
  fill_mask,
  left_to_right,
  samples,
  sampling,
  unmasking,
)
from lm.objectives import cross_entropy
from lm.runtime import sharding
from lm.training import budget, optimizer, program

_LARGEST_SEED = 2**32 - 1

FIELDS = field.section(
  seed=field.Field(
    0,
    'Random seed of parameters, dropout, data order and corruption.',
    least=0,
    most=_LARGEST_SEED,
  ),
  data=field.section(
    'What is read, and how it is cut into batches.',
    **sources.FIELDS,  # Where text comes from, and the formats of files.
    **collect.FIELDS,  # Language, near duplicates, cleaning.
    **splits.FIELDS,  # What is held out.
    **tokenizer.FIELDS,
    **prepare.FIELDS,  # The folder of prepared data, words, processes.
    **packing.FIELDS,  # Length and number of rows.
    **pipeline.FIELDS,  # Threads.
  ),
  objective=field.section(
    'What is predicted.',
    **objectives.FIELDS,  # The name, and a section an objective.
  ),
  model=field.section(
    'The network.',
    architecture=field.Field(
      None,
      'Which stacks there are.',
      kind=str,
      choices=models.ARCHITECTURES,
      none='the first that the objective trains',
      derive=lambda config: objectives.spec(config).architectures[0],
    ),
    **models.FIELDS,  # The family, and what the families read.
  ),
  optimizer=field.section('How parameters move.', **optimizer.FIELDS),
  train=field.section(
    'How long training is, and what happens on the way.',
    **budget.FIELDS,
    **program.FIELDS,  # Microbatches, an average of the parameters.
    **cross_entropy.FIELDS,  # Chunks, label smoothing, z-loss.
    log_every=field.Field(
      20,
      'Steps from one train line to the next; 0: the first and last step.',
      least=0,
      may_change=True,
    ),
    evaluate_every=field.Field(
      200,
      'Steps from one validation to the next; 0: only at the end.',
      least=0,
      may_change=True,
    ),
    checkpoint_every=field.Field(
      200,
      'Steps from one checkpoint to the next; 0: only at the end.',
      least=0,
      may_change=True,
    ),
    keep_checkpoints=field.Field(
      2,
      'Number of latest checkpoints that are kept, beside the best on '
      'validation.',
      least=1,
      may_change=True,
    ),
    profile=field.Field(
      0,
      'Steps that are profiled into WORKDIR/profile after a warmup; 0: none.',
      least=0,
      may_change=True,
    ),
  ),
  mesh=field.section('How devices share the work.', **sharding.FIELDS),
  evaluate=field.section(
    'How held-out text is scored.',
    **validation.FIELDS,
    **scorer.FIELDS,
    windows=field.Field(
      0,
      'Stored windows that are scored, spread evenly over all; 0: all.',
      least=0,
    ),
    baselines=field.Field(
      True, 'Prints xz and a unigram model beside the model.'
    ),
  ),
  generate=field.section(
    'How text is generated.',
    # A field is None where the objective does not read it. The order matters:
    # whether a field has an effect depends on those before it.
    **left_to_right.FIELDS,
    **beam.FIELDS,
    **sampling.FIELDS,
    **unmasking.FIELDS,
    **completion.FIELDS,  # Seed, samples a prompt, batch size.
    **fill_mask.FIELDS,
    **samples.FIELDS,  # At the end of training.
  ),
  show=field.section(
    'What --mode=show shows.',
    objectives=field.Field(
      (), "Names of objectives, or all; (): the config's own."
    ),
    examples=field.Field(
      2, 'Number of texts, the same ones for all objectives.', least=1
    ),
    tokens=field.Field(48, 'Tokens of the longest text.', least=2),
    seed=field.Field(
      0,
      'Random seed of the choice of texts and of their corruption.',
      least=0,
      most=_LARGEST_SEED,
    ),
    packed=field.Field(
      True,
      'Shows a row as the model sees it, too, with several examples in it if '
      'one has them.',
    ),
  ),
)


def get_config() -> config_dict.ConfigDict:
  """The defaults: a causal Transformer of 3 layers and width 256."""
  # A misspelt field in an experiment is an error, too.
  return _defaults(FIELDS).lock()


def _defaults(section: field.Section) -> config_dict.ConfigDict:
  config = config_dict.ConfigDict()
  for name, one in section.items():
    if isinstance(one, field.Section):
      config[name] = _defaults(one)
    elif one.default is None:
      config[name] = config_dict.placeholder(one.kind)
    else:
      config[name] = one.default
  return config


def shrink(config):
  """Makes a full-size config small enough for a minute on two CPU cores.

  What is particular about its model and its objective stays.
  """
  config.data.source = 'sotu'
  config.data.path = None
  config.data.vocab_size = 2048
  config.data.batch_size = 8
  config.model.num_layers = 2
  config.model.width = 64
  config.model.num_heads = 2
  config.model.dtype = 'float32'
  config.model.remat = 'none'
  config.optimizer.warmup_steps = 4
  config.train.steps = 40
  config.train.log_every = 10
  config.train.evaluate_every = 20
  config.train.checkpoint_every = 0
  config.evaluate.batches = 2
  config.evaluate.windows = 20
  config.evaluate.baselines = False
  config.generate.samples = 2
