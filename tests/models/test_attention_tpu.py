"""The train step, compiled for TPUs that are not here; needs `libtpu`.

libtpu is loaded in a process of its own: it writes to stderr, and it locks.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from helpers.environment import ROOT

_COMPILE = """
import json, sys

import jax
from jax.experimental import topologies

from experiments import base
from lm import models, objectives
from lm.config import resolve as config_lib
from lm.data import packing
from lm.runtime import sharding
from lm.training import optimizer, program, step

config = base.get_config()
config.data.tokenizer = 'bytes'
config.data.vocab_size = 528
config.data.sequence_length = 256
config.data.batch_size = 16
config.model.num_layers = 1
config.model.num_kv_heads = 2
config.model.dtype = 'bfloat16'
config.model.scan_layers = True
config.mesh.update(json.loads(sys.argv[1]))
config = config_lib.resolve(config)
topology = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:2x4'
)
mesh = sharding.make_mesh(config, topology.devices)
objective = objectives.make(config)
model = models.make(config, objective, mesh)
made = program.make(config, objective, model, mesh)
train_step = step.make_train_step(
  objective,
  model,
  made.transform,
  optimizer.make_schedule(config),
  microbatches=1,
)
row = packing.stack([packing.pack([], objective.capacity, objective.arrays)])
batch = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(
    (config.data.batch_size, *x.shape[1:]),
    x.dtype,
    sharding=sharding.of_batch(mesh),
  ),
  row,
)
jitted = step.jit_step(train_step, mesh, made.abstract)
print(jitted.lower(made.abstract, batch).compile().as_text())
"""

# The leading axis of what an all-gather returns.
_GATHERED = r'= \w+\[(\d+)[^=]* all-gather(?:-start)?\('


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed'
)
def test_a_train_step_for_tpus_runs_splash_on_each_devices_part():
  """Forward, and two kernels backward; nobody is given whole batches."""
  shape = {'data': 2, 'fsdp': 2, 'tensor': 2}
  done = subprocess.run(
    [sys.executable, '-c', _COMPILE, json.dumps(shape)],
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      # Nobody is asked which machine this is; the topology is given.
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'TPU_ACCELERATOR_TYPE': 'v5p-8',
    },
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = done.stdout.splitlines()
  calls = [line for line in lines if '"tpu_custom_call"' in line]
  assert len(calls) == 3, calls
  for call in calls:
    # A quarter of 16 rows; half of 4 query heads and of 2 key-value heads.
    shapes = re.findall(r'bf16\[([\d,]+)\]', call)
    assert set(shapes) == {'4,2,256,64', '4,1,256,64'}, call
  gathered = [x for line in lines for x in re.findall(_GATHERED, line)]
  assert gathered
  assert not {'8', '16'} & set(gathered)
