"""Provenance of a run: command, commit, versions, devices, data."""

import importlib.metadata
import json
import math
import pathlib
import platform
import subprocess
import time
from typing import Any

import jax

from lm import errors, types
from lm.data import prepare
from lm.runtime import files

_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def write(
  workdir: pathlib.Path,
  *,
  command: str,
  config,
  prepared: prepare.Prepared,
  model: types.Model,
  prompt: str | None,
):
  """Writes WORKDIR/provenance.json; earlier starts stay listed in it.

  Args:
    prompt: an example prompt for the run; None: it generates nothing.
  """
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  start = {
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'command': command,
    'commit': _commit(),
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processes': jax.process_count(),
    'steps': config.train.steps,
    'versions': {
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
  }
  path = workdir / 'provenance.json'
  starts = read(workdir)['starts'] if path.exists() else []
  files.write_json(
    path,
    {
      **start,
      'parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
      'data_directory': str(prepared.directory),
      'data_hash': prepared.hash,
      'tokenizer_digest': prepared.manifest['tokenizer']['digest'],
      'prompt': prompt,
      'starts': [*starts, start],
    },
  )


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads what `write` stored.

  Raises:
    UserError: the file is missing or damaged.
  """
  path = workdir / 'provenance.json'
  try:
    known = json.loads(path.read_text('utf-8'))
    if {'data_directory', 'data_hash', 'starts'} <= set(known):
      return known
    reason = 'fields are missing'
  except (OSError, ValueError) as error:
    reason = str(error)
  raise errors.UserError(
    f'{path} cannot be used ({reason}); restore it, or start anew in another '
    '--workdir'
  )


def _commit() -> str | None:
  """The commit of the code, `-dirty` if files differ; None outside of git."""
  try:
    return subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=40'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
