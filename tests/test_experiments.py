"""Every experiment builds at full size; the quick start's smoke test runs."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.environment import ROOT

from lm import models, objectives, types
from lm.config import resolve as config_lib
from lm.data import packing, tokenizer
from lm.runtime import sharding
from lm.training import metrics, program

# experiments/NAME.py -> parameters at full size.
PARAMETERS = {
  'quickstart': 4_507_392,
  # The releases, as counted by transformers.
  'gpt2_124m': 124_439_808,
  'llama_1b': 1_235_814_400,
  't5_small': 60_506_624,
  't5_base': 222_903_552,
  # bert-base-uncased with its pooler, and its readout of masked tokens: a layer
  # with a norm, and a bias on the logits.
  'bert_base': 109_482_240 + (768 * 768 + 768 + 2 * 768 + 30_522),
}
# Every objective has an experiment of its name, at the size at which they are
# compared: one stack of 4 layers, or two of 2.
COMPARED = {
  'decoder': 5_310_720,
  'encoder': 5_310_720,
  'encoder_decoder': 5_835_776,
}


def experiments():
  names = {path.stem for path in (ROOT / 'experiments').glob('*.py')}
  return sorted(names - {'base'})


def get_config(name, *variant):
  path = ROOT / 'experiments' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*variant)


@pytest.mark.parametrize('name', experiments())
@pytest.mark.parametrize('variant', [(), ('smoke',)])
def test_builds(name, variant):
  config = config_lib.resolve(get_config(name, *variant))
  model = models.make(config, objectives.make(config))
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  if name in objectives.OBJECTIVES:
    assert config.objective.name == name
    expected = COMPARED[config.model.architecture]
  else:
    expected = PARAMETERS[name]
  assert count == expected or (variant and count < expected)


def test_every_objective_has_an_experiment():
  assert set(objectives.OBJECTIVES) <= set(experiments())


@pytest.mark.parametrize('name', experiments())
def test_two_steps_of_the_smoke_variant(name):
  """On random text; of the second step the loss is finite and another."""
  config = get_config(name, 'smoke')
  config.mesh.data = 1
  config = config_lib.resolve(config)
  objective = objectives.make(config)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  made = program.make(
    config, objective, models.make(config, objective, mesh), mesh
  )
  rng = np.random.default_rng(0)
  rows = []
  while len(rows) < config.data.batch_size:
    record = random_record(rng, config, objective)
    for example in objective.corrupt(record, rng):
      rows.append(packing.pack([example], objective.capacity, objective.arrays))
  batch = made.put(packing.stack(rows[: config.data.batch_size]))
  compiled, state = made.compile(), made.init()
  totals = []
  for _ in range(2):
    state, values = compiled(state, batch)
    terms = jax.device_get(values['terms'])
    totals.append(sum(float(total) for total, _ in terms.values()))
  assert np.all(np.isfinite(totals))
  assert totals[0] != totals[1]


def random_record(rng, config, objective):
  n = objective.raw_length // (3 if objective.pairs else 1)
  ids = rng.integers(526, config.data.vocab_size, n).astype(np.int32)
  ids[-1] = tokenizer.EOS
  if objective.pairs:
    ids[n // 2] = tokenizer.SEP
  return types.Record(ids_L=ids, word_L=np.arange(n))


def test_a_misspelt_field_in_an_experiment_is_an_error():
  config = get_config('quickstart')
  with pytest.raises(AttributeError, match='stesp'):
    config.train.stesp = 3


def test_the_smoke_test_of_the_readme(tmp_path, compilation_cache):
  """All of the quick start, in a new folder, as a process of its own."""
  command = [sys.executable, str(ROOT / 'run.py')]
  command.append(f'--config={ROOT}/experiments/quickstart.py:smoke')
  environment = {
    'PATH': '/usr/bin:/bin',
    'JAX_COMPILATION_CACHE_DIR': compilation_cache,
  }
  done = subprocess.run(
    command,
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')
  workdir = tmp_path / 'runs' / 'quickstart-smoke'
  lines = metrics.read(workdir)
  train = [line['loss'] for line in lines if line['split'] == 'train']
  assert train[-1] < train[0] - 1
  final = lines[-1]
  assert final['split'] == 'final'
  assert final['bits_per_byte'] < final['unigram_bits_per_byte'] + 0.2
  assert final['bytes'] == 1_149_007
  # Measured once with `xz -9` itself: 2.13, and 1.74 given the training text.
  assert final['xz_bits_per_byte'] == pytest.approx(2.13, abs=0.01)
  given = final['xz_given_training_bits_per_byte']
  assert given == pytest.approx(1.74, abs=0.015)
  manifest = json.loads(
    next((tmp_path / 'runs' / 'data').glob('sotu-*/manifest.json')).read_text()
  )
  assert manifest['tokenizer']['pieces'] >= 4096
  assert manifest['documents'] == {'train': 200, 'validation': 25, 'test': 24}
  report = (workdir / 'report.html').read_text('utf-8')
  for figure in ('bits_per_byte', 'xz_bits_per_byte'):
    assert f'{final[figure]:.3f}' in report
  assert f'{final["bits_per_byte"]:6.3f}  this model' in done.stdout
  path = pathlib.Path('runs', 'quickstart-smoke', 'report.html')
  assert done.stdout.splitlines()[-1] == f'report: {path}'
  assert {path.name for path in workdir.iterdir()} >= {
    *('config.json', 'provenance.json', 'metrics.jsonl', 'samples.txt'),
    *('report.html', 'tensorboard', 'checkpoints', 'tokenizer', 'held_out'),
  }
