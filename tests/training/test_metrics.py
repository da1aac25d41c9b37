"""metrics.jsonl: sums not means of means, cut back, half lines."""

import json
import types

import pytest

from lm.runtime import files
from lm.training import metrics


def step_metrics(total, weight):
  return {
    'terms': {'causal': (total, weight)},
    'tokens': 10,
    'loss_tokens': 9,
    'text_loss_tokens': 8,
  }


def test_the_logged_loss_is_the_ratio_of_sums():
  accumulator = metrics.Accumulator()
  accumulator.add(step_metrics(10.0, 1.0), positions=16, flops=100)
  accumulator.add(step_metrics(10.0, 9.0), positions=16, flops=100)
  values = accumulator.losses({'causal': 1.0})
  assert values == {'loss': 2.0, 'loss/causal': 2.0}
  assert accumulator.counters == {
    'tokens': 20,
    'positions': 32,
    'loss_tokens': 18,
    'text_loss_tokens': 16,
    'flops': 200,
  }


def test_sums_are_forgotten_with_each_line_and_counters_are_not():
  accumulator = metrics.Accumulator()
  accumulator.add(step_metrics(8.0, 2.0), positions=16, flops=100)
  assert accumulator.losses({'causal': 0.5})['loss'] == 2.0
  accumulator.add(step_metrics(3.0, 1.0), positions=16, flops=100)
  assert accumulator.losses({'causal': 0.5})['loss'] == 1.5
  assert accumulator.counters['tokens'] == 20


def test_state_goes_through_json_without_loss():
  accumulator = metrics.Accumulator()
  accumulator.add(step_metrics(1 / 3, 7.0), positions=16, flops=100)
  state = json.loads(json.dumps(accumulator.state()))
  again = metrics.Accumulator(state)
  for one in (accumulator, again):
    one.add(step_metrics(0.1, 3.0), positions=16, flops=100)
  assert again.counters == accumulator.counters
  coefficients = {'causal': 1.0}
  assert again.losses(coefficients) == accumulator.losses(coefficients)


def test_a_term_without_weight_is_absent_and_counts_nothing():
  values = metrics.term_losses(
    {'a': (6.0, 3.0), 'b': (0.0, 0.0)}, {'a': 1.0, 'b': 5.0}
  )
  assert values == {'loss/a': 2.0, 'loss': 2.0}
  assert metrics.term_losses({'a': (0.0, 0.0)}, {'a': 1.0}) == {}


def test_padding_is_what_no_token_was_in():
  accumulator = metrics.Accumulator()
  for _ in range(2):
    accumulator.add(step_metrics(1.0, 1.0), positions=16, flops=100)
  assert accumulator.padding_share() == 1 - 20 / 32


def test_lists_are_written_whole(tmp_path):
  writer = metrics.Writer(tmp_path, length=0, step=0)
  writer.write(1, 'validation', {'bits_by_position': [1.5, None]})
  writer.close()
  (line,) = metrics.read(tmp_path)
  assert line['bits_by_position'] == [1.5, None]


def test_lines_are_read_back_and_none_is_left_out(tmp_path):
  writer = metrics.Writer(tmp_path, length=0, step=0)
  writer.write(1, 'train', {'loss': 0.1 + 0.2, 'best': None})
  length = writer.sync()
  writer.write(2, 'test', {'scorer': 'exact'})
  writer.close()
  assert metrics.read(tmp_path) == [
    {'step': 1, 'split': 'train', 'loss': 0.1 + 0.2},
    {'step': 2, 'split': 'test', 'scorer': 'exact'},
  ]
  assert (
    length == len((tmp_path / 'metrics.jsonl').read_bytes().split(b'\n')[0]) + 1
  )


def test_a_restored_run_cuts_what_came_after_its_checkpoint(tmp_path):
  writer = metrics.Writer(tmp_path, length=0, step=0)
  writer.write(1, 'train', {'loss': 1.0})
  length = writer.sync()
  writer.write(2, 'train', {'loss': 2.0})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'ab') as f:
    f.write(b'{"step": 3, "spl')
  again = metrics.Writer(tmp_path, length=length, step=1)
  again.write(2, 'train', {'loss': 2.5})
  again.close()
  assert [line['loss'] for line in metrics.read(tmp_path)] == [1.0, 2.5]


def test_half_a_line_is_dropped_on_reading(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2')
  assert metrics.read(tmp_path) == [{'step': 1}]
  assert metrics.read(tmp_path / 'absent') == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  files.write(path, 'old')

  def fails(*arguments):
    raise OSError('no')

  monkeypatch.setattr('os.replace', fails)
  with pytest.raises(OSError, match='no'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_truncate_keeps_the_beginning(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'12345')
  files.truncate(path, 3)
  assert path.read_bytes() == b'123'
  files.truncate(tmp_path / 'absent', 3)
  assert not (tmp_path / 'absent').exists()


def test_a_state_does_not_change_with_later_steps():
  accumulator = metrics.Accumulator()
  accumulator.add(step_metrics(1.0, 2.0), positions=16, flops=100)
  state = accumulator.state()
  before = json.dumps(state)
  accumulator.add(step_metrics(1.0, 2.0), positions=16, flops=100)
  assert json.dumps(state) == before


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is set: clock['now'] = seconds."""
  clock = {'now': 100.0}
  monkeypatch.setattr('time.monotonic', lambda: clock['now'])
  return clock


def _devices(*kinds):
  return [types.SimpleNamespace(device_kind=kind) for kind in kinds]


def test_speed_is_of_the_time_in_which_steps_were_made(clock):
  speed = metrics.Speed(
    5, positions=16, flops=55e12, devices=_devices('TPU v4', 'TPU v4')
  )
  clock['now'] += 4
  values = speed.lap(15)
  assert values['tokens_per_second'] == pytest.approx(10 * 16 / 4)
  # 10 x 55 TFLOP in 4 s, of twice 275 TFLOP/s.
  assert values['model_flops_utilization'] == pytest.approx(0.25)
  clock['now'] += 7  # of an evaluation
  speed.restart(16)
  clock['now'] += 1
  assert speed.lap(18)['tokens_per_second'] == pytest.approx(2 * 16)


def test_utilisation_is_absent_where_the_peak_is_not_known(clock, tmp_path):
  speed = metrics.Speed(0, positions=1, flops=1, devices=_devices('cpu'))
  clock['now'] += 1
  writer = metrics.Writer(tmp_path, length=0, step=0)
  writer.write(1, 'train', speed.lap(1))
  writer.close()
  (line,) = metrics.read(tmp_path)
  assert line == {'step': 1, 'split': 'train', 'tokens_per_second': 1.0}
