"""Progress: a bar on a terminal, plain lines elsewhere."""

import io

import pytest

from lm.runtime import console


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0:00'), (59.6, '1:00'), (61, '1:01'), (3661, '1:01:01'), (-1, '0:00')],
)
def test_duration(seconds, text):
  assert console.duration(seconds) == text


def test_plain_lines_come_when_due_alone(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr('time.monotonic', lambda: clock[0])
  stream = io.StringIO()
  with console.Progress('step', start=10, total=30, stream=stream) as progress:
    clock[0] = 5.0
    progress.update(15, 'unseen')
    progress.update(20, 'loss 2.5', log=True)
    progress.line('a line')
    progress.update(30, 'loss 2.0', log=True)
  # Ten steps took 5 s, so ten more take 5 s.
  assert stream.getvalue() == (
    'step 20/30: loss 2.5, 0:05 left\na line\nstep 30/30: loss 2.0\n'
  )


def test_the_bar_keeps_its_status_between_lines():
  stream = Terminal()
  with console.Progress('step', start=0, total=9, stream=stream) as progress:
    progress.update(1, 'loss 2.5', log=True)
    progress.update(2)
    progress.line('[not] markup')
    progress.advance(3)
    last = progress._bar.tasks[0]
  assert last.completed == 5
  assert last.fields['status'].startswith('loss 2.5, ')
  assert '[not] markup' in stream.getvalue()


def test_without_a_total_only_what_is_done_is_shown():
  for stream in (io.StringIO(), Terminal()):
    with console.Progress('MB', start=0, total=None, stream=stream) as progress:
      progress.advance(3)
      progress.update(5, log=True)
    if not stream.isatty():
      assert stream.getvalue() == 'MB 5\n'
