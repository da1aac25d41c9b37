"""What the tests themselves make."""

import numpy as np
import pytest
from helpers import docstrings
from helpers.batches import one_a_row

from lm.data import tokenizer
from lm.objectives import layout


def test_one_a_row_of_the_docstring():
  batch = one_a_row([np.array([1, 2, 3]), np.array([4])], 2, 4)
  assert batch.tokens_BxL.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
  assert batch.segment_BxL.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
  assert batch.position_BxL.tolist() == [[0, 1, 2, 3]] * 2
  assert not batch.weights_BxL.any()


def documented():
  """From [B, L] nothing is read, nor of [a b].

  given [1 2], weight 2.5, other [0.5 EOS]
  ids      [BOS 300 S1]
  order    [0 1 2] -> such
  order    [3 4 5]
  """


def test_arrays_of_a_docstring():
  given, first, second = docstrings.examples(documented)
  assert given['given'].tolist() == [1, 2]
  assert given['other'].tolist() == [0.5, tokenizer.EOS]
  ids = [tokenizer.BOS, 300, tokenizer.SENTINELS[1]]
  assert first['ids'].tolist() == ids
  assert first['order'].tolist() == [0, 1, 2]
  assert second['order'].tolist() == [3, 4, 5]


def test_a_changed_number_is_noticed():
  found = layout.decoder(np.array([10, 11]), np.array([12]))
  docstrings.check(found, {'order': np.array([0, 0, 0])})
  with pytest.raises(AssertionError, match='order'):
    docstrings.check(found, {'order': np.array([0, 0, 1])})
