"""Command line: flags, and dispatch to a mode.

python run.py                                  the quick start
python run.py --config=experiments/NAME.py[:variant] --workdir=DIR
    [--mode=MODE] [--config.field=value ...]

python run.py --help=SECTION                   the fields of a section

Modes:
  train      prepare the data, train or continue training, evaluate, report
  evaluate   a run folder to figures; with --config.data.path=FILE any text,
             each token's bits as JSON lines
  generate   a run folder and --prompt, or prompts on stdin, to text
  show       what the objective makes of real text, of a run folder's or of a
             config's data; also as WORKDIR/show.html
  prepare    only the data
  benchmark  time the config's train step, input and decoding; JSON at the end

Several processes form one run as Slurm, Open MPI or a TPU pod start them, or
each by hand with
    --coordinator_address=HOST:PORT --num_processes=N --process_id=I
"""

import difflib
import errno
import os
import pathlib
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence

_BEGAN = time.monotonic()  # Before what takes long to import.

from lm.runtime import malloc

malloc.keep()  # Before JAX starts its threads.

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from lm.config import check, resolve as config_lib
from lm import benchmark, errors, evaluate, generate, show, evaluate_text, train
from lm.runtime import hosts, signals
from lm.data import prepare
from lm.report import reference

# Errors of a path that the user gave, wherever they are met.
_UNUSABLE = (
  *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
  *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
)

_HERE = pathlib.Path(__file__).resolve().parent
_DEFAULT = str(_HERE / 'experiments' / 'quickstart.py')


def _is_config(argument: str) -> bool:
  return bool(re.match(r'--?config(=|$)', argument))


# Read before `parse_flags` inserts the default.
_CONFIG_GIVEN = any(map(_is_config, sys.argv))

# Without a default: it would be loaded here, where a misspelt field ends in a
# traceback. `parse_flags` inserts it.
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File of an experiment, `experiments/NAME.py[:variant]`; default: the quick '
  'start.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The run folder; default: runs/NAME of the config.'
)
_MODE = flags.DEFINE_string('mode', 'train', 'What to do, see above.')
_PROMPT = flags.DEFINE_string(
  'prompt', None, 'Prompt of --mode=generate; default: the lines of stdin.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of process 0, where several processes form a run.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes that form this run.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Index of this process, from 0.'
)
# The flags of this file; absl has others.
_FLAGS = (
  *('config', 'workdir', 'mode', 'prompt'),
  *('coordinator_address', 'num_processes', 'process_id'),
)


def _train(workdir: pathlib.Path):
  train.run(
    _CONFIG.value,
    workdir,
    _command(),
    given=_given(),
    process_began=_BEGAN,
  )


def _evaluate(workdir: pathlib.Path):
  overrides = _overrides('evaluate', 'mesh', *evaluate_text.FIELDS)
  if 'data.path' in overrides:
    evaluate_text.run(workdir, overrides)
    return
  for field in evaluate_text.FIELDS:
    if field in overrides:
      raise errors.UserError(
        f'--config.{field} says how a text is read; give the text, too, as '
        '--config.data.path=FILE'
      )
  evaluate.run(workdir, overrides)


def _generate(workdir: pathlib.Path):
  prompts = _prompts()
  generate.run(
    workdir,
    _overrides('generate', 'mesh'),
    prompts if _PROMPT.value is None else list(prompts),
    one_by_one=bool(sys.stdin) and sys.stdin.isatty(),
  )


def _prompts() -> Iterator[str]:
  """Yields --prompt, or the lines of stdin as they come."""
  given = _PROMPT.value is not None
  if given:
    lines = [os.fsencode(_PROMPT.value)]
  else:
    lines = sys.stdin.buffer if sys.stdin else []  # None when it is closed
  number = 0
  for number, line in enumerate(lines, 1):
    try:
      yield line.decode() if given else line.decode().rstrip('\r\n')
    except UnicodeDecodeError as error:
      where = '--prompt' if given else f'line {number} of stdin'
      raise errors.UserError(
        f'{where} is not UTF-8 at byte {error.start}; convert it, for instance '
        'with iconv -f GB18030 -t UTF-8'
      ) from None
  if not number:
    raise errors.UserError(
      'stdin holds no prompt; give --prompt, or a prompt a line on stdin'
    )


def _show(workdir: pathlib.Path):
  if not hosts.is_first():
    return
  is_run = (workdir / 'config.json').exists()
  if _CONFIG_GIVEN or not (is_run or _WORKDIR.value):
    with signals.on_sigterm(_command()):
      show.of_config(_CONFIG.value, workdir, given=_given())
    return
  if not is_run:
    raise errors.UserError(
      f'--workdir={workdir} holds no run: there is no {workdir}/config.json; '
      'give the folder of a run, or --config=FILE to show that config there'
    )
  show.of_run(
    workdir, _overrides('show', mend='; to show another config, give --config')
  )


def _prepare(workdir: pathlib.Path):
  del workdir
  config = config_lib.resolve(_CONFIG.value, given=_given())
  if hosts.is_first():
    with signals.on_sigterm(_command()):
      prepared = prepare.prepare(config.data, report=print)
    print(prepare.describe(prepared))


def _benchmark(workdir: pathlib.Path):
  del workdir
  benchmark.run(_CONFIG.value, given=_given())


MODES = {
  'train': _train,
  'evaluate': _evaluate,
  'generate': _generate,
  'show': _show,
  'prepare': _prepare,
  'benchmark': _benchmark,
}


def main(argv: Sequence[str]):
  """Runs a mode; a mistake of the user's is one line on stderr, exit code 2."""
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
      logging.set_verbosity(logging.WARNING)
      # Orbax logs much at INFO, and pages about each error before it raises it.
      logging.get_absl_logger().setLevel('CRITICAL')
    _use_compilation_cache()
    hosts.join(
      _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    MODES[_MODE.value](_workdir())
    hosts.disconnect()
  except errors.UserError as error:
    _fail(str(error))
  except signals.Interrupted as interruption:
    hosts.leave(interruption.exit_code, f'\n{interruption}')
  except KeyboardInterrupt:
    hosts.leave(130, f'\nstopped: {_command()}')
  except BrokenPipeError:
    # The reader of stdout has closed it, as `head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    hosts.leave(141)
  except Exception as error:
    if errors.is_disk_full(error):
      _fail(
        f'no space left on the disk ({errors.one_line(error)}); free some, or '
        'give another --workdir and --config.data.directory'
      )
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
      _fail(
        f'{error.filename} cannot be used ({error.strerror}); give another '
        '--workdir or --config.data.directory, or make it readable and writable'
      )
    hosts.fail(error)
    raise


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a mistake in them is one line and exit code 2."""
  if requests := [a for a in argv[1:] if re.match(r'--?help(=|$)', a)]:
    _help(requests[0].partition('=')[2])
  if not any(map(_is_config, argv)):
    # `argv` is `sys.argv`, where config_flags looks for overrides.
    argv.insert(1, f'--config={_DEFAULT}')
  logging.set_verbosity(logging.ERROR)  # config_flags warns of what fails.
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      _fail(f'get_config() of --config={_config_file()} returns nothing')
    _CONFIG.value.get('seed')  # A file that cannot be read raises only now.
  except errors.UserError as error:
    _fail(str(error))
  except Exception as error:  # From absl, or from the config's own code.
    _fail(_explain_unknown(argv) or _explain(error))
  if len(rest) > 1:
    _fail(
      f'stray argument {rest[1]!r}; every setting is a flag, '
      '--config.section.field=value'
    )
  return rest


def _help(section: str):
  """Prints the modes, flags and sections, or the fields of a section; exits."""
  try:
    if section:
      print(reference.describe(section))
    else:
      print(f'{__doc__}\nFlags:')
      for name in _FLAGS:
        text = f'--{name}: {flags.FLAGS[name].help}'
        print(textwrap.indent(textwrap.fill(text, 76), '  '))
      print('\nSections of the config, see --help=SECTION:')
      print(reference.overview())
  except errors.UserError as error:
    _fail(str(error))
  sys.exit(0)


def _explain_unknown(argv: Sequence[str]) -> str:
  """Names a field or flag that does not exist, and the nearest that does."""
  known = [*_FLAGS, 'help', *(f'config.{field}' for field in check.FIELDS)]
  for argument in argv[1:]:
    name = argument.lstrip('-').split('=')[0]
    of_absl = name in flags.FLAGS and not name.startswith('config.')
    if argument[:1] != '-' or name in known or of_absl:
      continue
    if name.removeprefix('no') in known:  # --noconfig.model.bias
      continue
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean --{near[0]}? ' if near else ''
    return f'unknown flag --{name}; {hint}--help=SECTION lists the fields'
  return ''


def _explain(error: Exception) -> str:
  """Explains what is wrong with a flag's value or with the config's file."""
  # config_flags puts whole tracebacks into some messages.
  lines = str(error).strip().splitlines()
  if isinstance(error, flags.Error) and 'Traceback' not in str(error):
    wrong = re.match(r'flag --([^=]+)=(.*?): ', str(error))
    if not wrong:  # A value is missing, or a field stands before --config.
      return (
        f'{errors.one_line(error)}; give --config=FILE first, then --FLAG=VALUE'
      )
    name, value = wrong.groups()
    kind = flags.FLAGS[name].parser.flag_type()
    return f'--{name}={value} is not of type {kind}; give such a value'
  if not isinstance(error, flags.Error | OSError):
    lines = [f'{type(error).__name__}: {errors.one_line(error)}']
  # The flag's own value, which has not been set.
  given = [a for a in sys.argv if _is_config(a)][-1]
  return f'{given} cannot be used: {" ".join(lines[-1].split())}'


def _fail(message: str):
  hosts.leave(2, f'error: {message}')


def _workdir() -> pathlib.Path:
  """--workdir, or runs/NAME[-variant] of the config's file."""
  if _WORKDIR.value:
    return pathlib.Path(_WORKDIR.value)
  path, _, variant = _config_file().partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs', f'{name}-{variant}' if variant else name)


def _config_file() -> str:
  return flags.FLAGS['config'].config_filename or _DEFAULT


def _overrides(*names: str, mend: str = '') -> dict[str, object]:
  """Fields given as flags; raises UserError for one that is not in `names`.

  Args:
    names: fields, or sections.
    mend: is added to the message.
  """
  overrides = _given()
  for field in overrides:
    if field not in names and field.split('.')[0] not in names:
      allowed = ', '.join(
        f'--config.{name}' if '.' in name else f'--config.{name}.*'
        for name in names
      )
      raise errors.UserError(
        f'--config.{field} cannot change with --mode={_MODE.value}, which '
        f'reads the config of the run folder; only {allowed} can{mend}'
      )
  return overrides


def _given() -> dict[str, object]:
  """Returns the values of the flags --config.SECTION.FIELD, by field."""
  return flags.FLAGS['config'].override_values


def _command() -> str:
  given = [a for a in sys.argv if a != f'--config={_DEFAULT}']
  return shlex.join(['python', *given])


def _use_compilation_cache():
  """Keeps compiled programs between runs; JAX's own variables override it."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update(
      'jax_compilation_cache_dir', os.path.abspath('runs/.compiled')
    )
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
