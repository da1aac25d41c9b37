"""Command line: flags, and dispatch to a mode.

python run.py                                  the quick start
python run.py --config=experiments/NAME.py[:variant] --workdir=DIR
    [--mode=train|evaluate|generate|prepare] [--config.field=value ...]

Modes:
  train     prepare the data, train or go on training, evaluate, report
  evaluate  a run folder to figures
  generate  a run folder and --prompt, or prompts on stdin, to text
  prepare   only the data
"""

import difflib
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from lm import config as config_lib
from lm import errors, evaluate, generate, train
from lm.data import prepare

_HERE = pathlib.Path(__file__).resolve().parent
_DEFAULT = str(_HERE / 'experiments' / 'quickstart.py')

_CONFIG = config_flags.DEFINE_config_file(
  'config', _DEFAULT, 'File of an experiment, `experiments/NAME.py[:variant]`.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The run folder; default: runs/NAME of the config.'
)
_MODE = flags.DEFINE_string('mode', 'train', 'What to do, see above.')
_PROMPT = flags.DEFINE_string(
  'prompt', None, 'What --mode=generate continues; default: lines of stdin.'
)


def _train(workdir: pathlib.Path):
  train.run(_CONFIG.value, workdir, _command())


def _evaluate(workdir: pathlib.Path):
  evaluate.run(workdir, _overrides('evaluate', 'mesh'))


def _generate(workdir: pathlib.Path):
  prompts = [_PROMPT.value]
  if _PROMPT.value is None:
    prompts = (line.rstrip('\n') for line in sys.stdin)
  generate.run(workdir, _overrides('generate', 'mesh'), prompts)


def _prepare(workdir: pathlib.Path):
  del workdir
  config = config_lib.resolve(_CONFIG.value)
  print(prepare.describe(prepare.prepare(config.data, report=print)))


MODES = {
  'train': _train,
  'evaluate': _evaluate,
  'generate': _generate,
  'prepare': _prepare,
}


def main(argv: Sequence[str]):
  """Runs a mode; mistakes become one line on stderr and exit code 2."""
  del argv
  try:
    if _MODE.value not in MODES:
      raise errors.UserError(
        f"unknown --mode='{_MODE.value}'; choose from {', '.join(MODES)}"
      )
    if _PROMPT.value is not None and _MODE.value != 'generate':
      raise errors.UserError(
        f'--prompt is of --mode=generate, not of --mode={_MODE.value}; leave '
        'it out or change the mode'
      )
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
    _use_compilation_cache()
    MODES[_MODE.value](_workdir())
  except errors.UserError as error:
    _fail(str(error))
  except train.Interrupted as interruption:
    print(f'\n{interruption}', file=sys.stderr)
    sys.exit(interruption.exit_code)
  except KeyboardInterrupt:
    print(f'\nstopped; run it again to go on: {_command()}', file=sys.stderr)
    sys.exit(130)
  except BrokenPipeError:
    # The reader of stdout has left, as `head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except Exception as error:
    if errors.is_disk_full(error):
      _fail(
        f'no space left on the disk ({_one_line(error)}); free some, or give '
        'another --workdir and --config.data.directory'
      )
    raise


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Flags, with every mistake in them told in one line and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
  except (flags.Error, errors.UserError) as error:
    _fail(_explain_unknown(error))
  except (AttributeError, KeyError) as error:
    _fail(_explain_unknown(error))
  except (OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
    _fail(f'--config cannot be used: {_one_line(error)}')
  if len(rest) > 1:
    _fail(
      f'stray argument {rest[1]!r}; every setting is a flag, '
      '--config.section.field=value'
    )
  return rest


def _explain_unknown(error: Exception) -> str:
  """The field or flag that does not exist, and the nearest that does."""
  given = [
    argument.removeprefix('-').removeprefix('-').split('=')[0]
    for argument in sys.argv[1:]
    if argument.startswith('-')
  ]
  known = ['config', 'workdir', 'mode', 'prompt']
  from experiments import base

  known += [f'config.{f}' for f in config_lib.flatten(base.get_config())]
  for name in given:
    if name not in known and not hasattr(flags.FLAGS, name):
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'; did you mean --{near[0]}?' if near else ''
      return f'unknown flag --{name}{hint} See experiments/base.py for fields'
  return _one_line(error)


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return text or type(error).__name__


def _fail(message: str):
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def _workdir() -> pathlib.Path:
  """--workdir, or runs/NAME[-variant] of the config's file."""
  if _WORKDIR.value:
    return pathlib.Path(_WORKDIR.value)
  path, _, variant = _config_file().partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs', f'{name}-{variant}' if variant else name)


def _config_file() -> str:
  return flags.FLAGS['config'].config_filename or _DEFAULT


def _overrides(*sections: str) -> dict[str, object]:
  """Fields given as flags; only of sections that may differ in this mode."""
  overrides = flags.FLAGS['config'].override_values
  for field in overrides:
    if field.split('.')[0] not in sections:
      allowed = ', '.join(f'--config.{section}.*' for section in sections)
      raise errors.UserError(
        f'--config.{field} cannot change with --mode={_MODE.value}, which '
        f'reads the config of the run folder; only {allowed} can'
      )
  return overrides


def _command() -> str:
  return shlex.join(['python', *sys.argv])


def _use_compilation_cache():
  """Compiled programs are kept between runs; JAX's own variable overrides."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update(
      'jax_compilation_cache_dir', os.path.abspath('runs/.compiled')
    )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
