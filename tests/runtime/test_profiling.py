"""Profiles appear whole or not at all, and training does not notice."""

import gzip
import json
import time

import jax
import pytest
from helpers import runs

from lm import train
from lm.runtime import profiling
from lm.training import metrics


def _traced(workdir, *, count, first, last, stop_at=None):
  """Steps that a trace covers, by the names of what ran in them."""
  double = jax.jit(lambda x: 2 * x)
  with profiling.Trace(workdir, count=count, first=first, last=last) as trace:
    for number in range(first, last + 1):
      with jax.profiler.TraceAnnotation(f'step {number};'):
        double(number).block_until_ready()
      if trace.turns_after(number):
        trace.turn()
      if number == stop_at:
        raise KeyboardInterrupt
  found = []
  for path in workdir.glob('profile/plugins/profile/*/*.trace.json.gz'):
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    names = {event.get('name', '') for event in events}
    found += [n for n in range(first, last + 1) if f'step {n};' in names]
  return found


@pytest.mark.parametrize(
  ('count', 'first', 'last', 'steps'),
  [
    (3, 1, 40, [11, 12, 13]),
    (2, 21, 40, [31, 32]),
    (2, 1, 5, [4, 5]),  # too short to warm up
    (9, 4, 5, [4, 5]),
    (0, 1, 40, []),
  ],
)
def test_covers_the_steps_after_a_warmup(tmp_path, count, first, last, steps):
  traced = _traced(tmp_path, count=count, first=first, last=last)
  assert sorted(traced) == steps
  names = [path.name for path in tmp_path.iterdir()]
  assert names == (['profile'] if count else [])


def test_what_a_killed_start_has_left_does_not_pass_for_a_profile(tmp_path):
  sessions = tmp_path / '.profile.tmp' / 'plugins' / 'profile'
  (sessions / 'half').mkdir(parents=True)
  assert _traced(tmp_path, count=1, first=1, last=2) == [2]
  (session,) = (tmp_path / 'profile' / 'plugins' / 'profile').iterdir()
  assert session.name != 'half'
  assert not (tmp_path / '.profile.tmp').exists()


def test_a_start_that_is_stopped_leaves_none_and_the_next_one_can(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    _traced(tmp_path, count=3, first=1, last=9, stop_at=8)
  assert list(tmp_path.iterdir()) == []
  assert _traced(tmp_path, count=1, first=1, last=2) == [2]


def test_a_profiled_run_is_the_same_run(config, tmp_path, monkeypatch):
  config.model.num_layers = 1
  config.train.evaluate_every = 0
  config.generate.samples = 0
  train.run(config, tmp_path / 'plain', 'python')
  config.train.profile = 2
  turned = []
  turn = profiling.Trace.turn

  def slow_turn(trace):
    time.sleep(3)
    turned.append(trace)
    turn(trace)

  monkeypatch.setattr(profiling.Trace, 'turn', slow_turn)
  train.run(config, tmp_path / 'profiled', 'python')
  assert len(turned) == 2
  assert runs.lines(tmp_path / 'profiled') == runs.lines(tmp_path / 'plain')
  profile = tmp_path / 'profiled' / 'profile' / 'plugins' / 'profile'
  (session,) = profile.iterdir()
  assert [path for path in session.iterdir() if path.suffix == '.pb']
  assert not (tmp_path / 'plain' / 'profile').exists()
  # Starting and ending a trace is not in the time of any step.
  positions = config.data.batch_size * config.data.sequence_length
  every = config.train.log_every
  speeds = [
    line['tokens_per_second']
    for line in metrics.read(tmp_path / 'profiled')
    if line['split'] == 'train' and line['step'] > 1
  ]
  assert min(speeds) > every * positions / 3
