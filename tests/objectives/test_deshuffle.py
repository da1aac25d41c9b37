"""Deshuffling: the worked example, and what a shuffle keeps."""

import numpy as np
from helpers import docstrings, noise

from lm.data import tokenizer
from lm.objectives import deshuffle


def test_example_of_the_docstring():
  shown = docstrings.example(deshuffle.shuffle)
  pairs = [
    deshuffle.shuffle(noise.record(shown['ids']), np.random.default_rng(seed))
    for seed in range(200)
  ]
  assert any(np.array_equal(inputs, shown['inputs']) for inputs, _ in pairs)
  for inputs, targets in pairs:
    np.testing.assert_array_equal(targets, shown['targets'])
    assert sorted(inputs.tolist()) == sorted(targets.tolist())
    assert inputs[-1] == tokenizer.EOS


def test_each_order_is_equally_likely():
  rng, record = np.random.default_rng(0), noise.record([300, 301, 302])
  drawn = [tuple(deshuffle.shuffle(record, rng)[0]) for _ in range(6000)]
  counts = [drawn.count(order) for order in set(drawn)]
  # Five standard deviations of a binomial.
  np.testing.assert_allclose(counts, [1000] * 6, atol=150)
