"""Shared fixtures: eight CPU devices, a small corpus, a tiny config."""

import os
import pathlib
import sys

from helpers import commands
from helpers.environment import QUICKLY_COMPILED, ROOT

# Before jax is imported: every test sees a mesh of eight devices.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  f'--xla_force_host_platform_device_count=8 {QUICKLY_COMPILED}'
)

import jax
import pytest

sys.path.insert(0, str(ROOT))

from helpers.texts import sentences

from experiments import base

# Files that take longest.
_LONG = (
  *('test_hosts.py', 'test_resume.py', 'test_experiments.py', 'test_readme.py'),
  *('test_run.py', 'test_every_objective.py', 'test_objectives.py'),
)


def pytest_collection_modifyitems(items):
  """Begins with the longest files, so that no worker waits for another's."""
  order = {name: place for place, name in enumerate(_LONG)}
  items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope='session')
def corpus(tmp_path_factory) -> pathlib.Path:
  """A folder of 40 English .txt files, about 120 kB in all."""
  folder = tmp_path_factory.mktemp('corpus')
  for number in range(40):
    text = sentences(number, 20 + 3 * number)
    (folder / f'{number:02d}.txt').write_text(text, encoding='utf-8')
  return folder


@pytest.fixture(scope='session')
def compilation_cache(tmp_path_factory) -> str:
  """A folder that all processes of a test session share."""
  root = pathlib.Path(tmp_path_factory.getbasetemp())
  # With xdist each worker has a folder of its own below the session's.
  shared = root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root
  return str(shared / 'compiled')


@pytest.fixture(scope='session', autouse=True)
def _use_compilation_cache(compilation_cache):
  jax.config.update('jax_compilation_cache_dir', compilation_cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@pytest.fixture(scope='session')
def run_command(tmp_path_factory, compilation_cache):
  """run_command(*flags, stdin=b'', cwd=...) -> exit code, stdout, stderr."""
  folder = tmp_path_factory.mktemp('forks')
  with commands.server(folder, compilation_cache) as run:
    yield run


@pytest.fixture
def config(corpus, tmp_path_factory):
  """A tiny run on `corpus` with bytes; the prepared data is shared."""
  config = base.get_config()
  config.data.source = 'files'
  config.data.path = str(corpus)
  # Drawn at random, the text is not like any that is written.
  config.data.cleaning.rules = ()
  config.data.tokenizer = 'bytes'
  # Eight devices split its embeddings.
  config.data.vocab_size = 528
  config.data.directory = str(corpus.parent / f'prepared-{corpus.name}')
  config.data.sequence_length = 32
  config.data.batch_size = 8
  config.model.num_layers = 2
  config.model.width = 32
  config.model.num_heads = 4
  config.model.mlp_width = 64
  config.optimizer.warmup_steps = 2
  config.train.steps = 8
  config.train.log_every = 2
  config.train.evaluate_every = 4
  config.train.checkpoint_every = 4
  config.evaluate.batches = 2
  config.evaluate.batch_size = 16
  config.evaluate.baselines = False
  config.generate.samples = 1
  return config


@pytest.fixture
def pairs_config(config, tmp_path_factory):
  """As `config`, on pairs of a sentence and the same in capitals."""
  folder = tmp_path_factory.getbasetemp() / 'pairs'
  folder.mkdir(exist_ok=True)
  lines = ['text\ttarget']
  for number in range(600):
    text = ' '.join(sentences(number, 1).split()[:3])
    lines.append(f'{number} {text}\t{text.upper()}')
  path = folder / 'pairs.tsv'
  path.write_text('\n'.join(lines), encoding='utf-8')
  config.data.path = str(path)
  config.data.target_column = 'target'
  config.data.directory = str(folder / 'prepared')
  config.data.sequence_length = 64
  return config
