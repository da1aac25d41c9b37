"""Every objective learns, and goes on from a checkpoint bit for bit."""

import jax
import numpy as np
import pytest
from helpers import runs

from lm import models, objectives
from lm.config import resolve as config_lib
from lm.data import packing, prepare
from lm.runtime import sharding
from lm.training import checkpoint, program

CASES = [
  (name, architecture)
  for name in objectives.OBJECTIVES
  for architecture in objectives.OBJECTIVES[name].architectures
]
STEPS, SAVED = 60, 3


class Training:
  """A program on one device, and the batches of its training split."""

  def __init__(self, config):
    # Dropout: its randomness must come back, too.
    config.model.dropout = 0.1
    config.model.num_layers = 1
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule_steps = STEPS
    config = config_lib.resolve(config)
    prepared = prepare.prepare(config.data)
    objective = objectives.make(config, prepared.tokenizer())
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    model = models.make(config, objective, mesh)
    self.program = program.make(config, objective, model, mesh)
    self.rows = packing.training_rows(config, prepared.train(), objective)
    self.compiled = self.program.compile()

  def steps(self, state, first: int, stop: int):
    """The state after steps [first, stop), and (sum, weight) of their terms."""
    terms = []
    for batch in self.program.batches(self.rows, first=first, stop=stop):
      state, metrics = self.compiled(state, self.program.put(batch))
      terms.append(jax.device_get(metrics['terms']))
    return state, terms


@pytest.mark.parametrize(('name', 'architecture'), CASES)
def test_an_objective_learns_and_resumes(request, tmp_path, name, architecture):
  pairs = objectives.OBJECTIVES[name].data == 'pairs'
  fixture = 'pairs_config' if pairs else 'config'
  config = request.getfixturevalue(fixture)
  config.objective.name = name
  config.model.architecture = architecture
  training = Training(config)
  state, first = training.steps(training.program.init(), 0, SAVED)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1, writes=True)
  checkpoints.save(state, {'position': SAVED}, {})
  checkpoints.wait()
  state, rest = training.steps(state, SAVED, 2 * SAVED)

  restored, progress = checkpoints.restore_latest(training.program.abstract)
  checkpoints.close()
  assert progress['position'] == SAVED
  again, same = training.steps(restored, SAVED, 2 * SAVED)
  runs.assert_same_state(state, again)
  assert jax.tree.all(jax.tree.map(np.array_equal, rest, same))

  _, last = training.steps(state, 2 * SAVED, STEPS)
  for term in first[0]:
    begun, ended = (
      sum(terms[term][0] for terms in part)
      / sum(terms[term][1] for terms in part)
      for part in (first[:1], last[-10:])
    )
    assert all(terms[term][1] > 0 for terms in last[-10:])
    assert ended < 0.7 * begun, (term, begun, ended)
