"""Commands of `run.py`, many a second.

Starting Python takes seconds, so one process imports everything once and runs
`run.py` in a fork for each command.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from helpers.environment import QUICKLY_COMPILED, ROOT

_FORKS = """
import json, os, runpy, signal, sys, traceback

sys.path.insert(0, sys.argv[1])
script = os.path.join(sys.argv[1], 'run.py')
sys.argv = ['run.py']
from ml_collections import config_flags
from experiments import base
from lm import evaluate, generate, train


def child(case):
  os.chdir(case['cwd'])
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
    os.dup2(os.open(os.path.join(case['io'], name), flags), number)
  signal.alarm(300)
  sys.argv = [script, *case['flags']]
  code = 0
  try:
    runpy.run_path(script, run_name='__main__')
  except SystemExit as error:
    code = error.code or 0
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


for line in sys.stdin:
  pid = os.fork()
  if not pid:
    child(json.loads(line))
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def server(folder: pathlib.Path, compiled: str) -> Iterator[Callable]:
  """Yields run(*flags, stdin=b'', cwd=folder) -> exit code, stdout, stderr."""
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': compiled}
  environment['XLA_FLAGS'] = QUICKLY_COMPILED  # one device
  process = subprocess.Popen(
    [sys.executable, '-c', _FORKS, str(ROOT)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=environment,
    text=True,
  )

  def run(*flags, stdin=b'', cwd=folder):
    for name, content in [('stdin', stdin), ('stdout', b''), ('stderr', b'')]:
      (folder / name).write_bytes(content)
    case = {'flags': flags, 'cwd': str(cwd), 'io': str(folder)}
    process.stdin.write(json.dumps(case) + '\n')
    process.stdin.flush()
    code = int(process.stdout.readline())
    return code, *(
      (folder / name).read_bytes().decode() for name in ('stdout', 'stderr')
    )

  yield run
  process.stdin.close()
  process.stdout.close()
  process.wait(300)
