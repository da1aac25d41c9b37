"""Processes: results come in order, and a killed process is reported."""

import operator
import os
import pathlib
import subprocess
import sys
import time

import pytest
from helpers.environment import ROOT

from lm import errors
from lm.data import sources, workers


@pytest.mark.parametrize('count', [0, 2])
def test_results_come_in_the_order_of_the_batches(count):
  taken = []

  def batches():
    for number in range(40):
      taken.append(number)
      yield number

  with workers.Pool(count) as pool:
    results = pool.map(operator.mul, batches(), 3)
    assert next(results) == 0
    # No more is read ahead than keeps the processes busy.
    assert len(taken) <= 2 * count + 1
    assert list(results) == [3 * number for number in range(1, 40)]
    assert pool.run(operator.add, 1, 2) == 3


def test_work_is_done_in_other_processes():
  with workers.Pool(1) as pool:
    assert pool.run(os.getpid) != os.getpid()
  with workers.Pool(0) as pool:
    assert pool.run(os.getpid) == os.getpid()


def test_what_a_worker_raises_is_raised_here():
  with workers.Pool(1) as pool, pytest.raises(ZeroDivisionError):
    list(pool.map(operator.truediv, [1], 0))


_PARENT = """
import os, time
from lm.data import workers
with workers.Pool(1) as pool:
  print(pool.run(os.getpid), flush=True)
  pool.run(time.sleep, 60)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux ends the workers')
def test_workers_end_with_a_killed_parent():
  process = subprocess.Popen(
    [sys.executable, '-c', _PARENT], cwd=ROOT, stdout=subprocess.PIPE
  )
  worker = pathlib.Path('/proc', process.stdout.readline().decode().strip())
  assert worker.name.isdigit()
  process.stdout.close()
  process.kill()
  process.wait()
  until = time.monotonic() + 2
  while (is_there := _runs(worker)) and time.monotonic() < until:
    time.sleep(0.05)
  assert not is_there


def _runs(process):
  try:
    state = (process / 'stat').read_text().rpartition(')')[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state not in 'ZX'  # Ended, perhaps with no one to take note of it.


def test_as_many_cores_as_are_allowed(monkeypatch):
  monkeypatch.setenv('LOKY_MAX_CPU_COUNT', '1')
  assert workers.cores() == 1


def test_a_mistake_in_a_worker_keeps_its_message():
  with workers.Pool(1) as pool, pytest.raises(errors.UserError) as caught:
    pool.run(sources.check_mixture, ('sotu',))
  assert str(caught.value).startswith("data.sources: 'sotu' is no pair")


def test_a_killed_process_is_reported_in_one_line():
  with (
    workers.Pool(1) as pool,
    pytest.raises(errors.UserError, match=r'killed.*data\.processes') as error,
  ):
    list(pool.map(os._exit, [1]))
  assert '\n' not in str(error.value)
