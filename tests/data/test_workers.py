"""Processes: results in order, and a killed one is told."""

import operator
import os

import pytest

from lm import errors
from lm.data import workers


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


def test_a_killed_process_is_told_in_one_line():
  with (
    workers.Pool(1) as pool,
    pytest.raises(errors.UserError, match=r'killed.*data\.processes') as error,
  ):
    list(pool.map(os._exit, [1]))
  assert '\n' not in str(error.value)
