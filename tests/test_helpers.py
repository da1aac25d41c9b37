"""What the tests themselves make."""

import numpy as np
from helpers.batches import one_a_row


def test_one_a_row_of_the_docstring():
  batch = one_a_row([np.array([1, 2, 3]), np.array([4])], 2, 4)
  assert batch.tokens_BxL.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
  assert batch.segment_BxL.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
  assert batch.position_BxL.tolist() == [[0, 1, 2, 3]] * 2
  assert not batch.weights_BxL.any()
