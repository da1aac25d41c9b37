"""Figures of texts: the examples of the docstrings, and Chinese."""

import ast
import collections
import inspect
import re

import pytest
from helpers.texts import sentences

from lm.generation import diversity


def test_units_of_the_docstring():
  found = diversity.split('Big dogs, big\n我们')
  assert found == ['Big', 'dogs', ',', 'big', '我', '们']
  assert diversity.split(' \n\t') == []


def shown(function, pattern):
  """The groups of a pattern in a docstring, evaluated."""
  found = re.findall(pattern, inspect.getdoc(function))
  assert found
  return [[ast.literal_eval(x) for x in groups] for groups in found]


def test_distinct_of_the_docstring():
  pattern = r'n (\d), (\[.*\]) -> .*: ([\d.]+)'
  for n, texts, share in shown(diversity.distinct, pattern):
    assert diversity.distinct(texts, n) == pytest.approx(share)


def test_repetition_of_the_docstring():
  pattern = r'n (\d), (\[.*\]) -> .*: (\d)/(\d)'
  for n, texts, a, b in shown(diversity.repetition, pattern):
    assert diversity.repetition(texts, n) == pytest.approx(a / b)


def test_lengths_of_the_docstring():
  pattern = r'(\[.*\]), (\[.*\]) -> ([\d.]+) words, (\d+) tokens, (\d+) bytes'
  [(texts, tokens, *means)] = shown(diversity.lengths, pattern)
  assert [*diversity.lengths(texts, tokens).values()] == means


def test_figures_of_longer_text_are_those_of_a_slow_count():
  texts = [sentences(seed, 30) for seed in range(3)]
  units = [diversity.split(text) for text in texts]
  for n in (1, 2, 3):
    counts = collections.Counter()
    for one in units:
      for i in range(len(one) - n + 1):
        counts[' '.join(one[i : i + n])] += 1
    expected = len(counts) / sum(map(len, units))
    assert diversity.distinct(texts, n) == pytest.approx(expected)
  shares = []
  for one in units:
    seen, again = set(), 0
    for i in range(len(one) - 1):
      again += ' '.join(one[i : i + 2]) in seen
      seen.add(' '.join(one[i : i + 2]))
    shares.append(again / (len(one) - 1))
  assert sum(shares) > 0
  assert diversity.repetition(texts, 2) == pytest.approx(sum(shares) / 3)


def test_a_loop_is_reported_from_text():
  loop = diversity.diversity(['今天天气很好。' * 9, 'and so on ' * 9])
  text = diversity.diversity(
    ['今天天气很好，我们去学校。', 'It went on and on.']
  )
  assert loop['repetition_4'] > 0.8
  assert text['repetition_4'] == 0
  assert loop['distinct_1'] < text['distinct_1']


def test_what_is_not_defined_is_absent():
  assert diversity.diversity(['', ' \n']) == {}
  short = diversity.diversity(['我们'])
  assert short == {'distinct_1': 1, 'distinct_2': 0.5, 'distinct_3': 0}


def test_the_table_shows_what_there_is():
  table = diversity.table(
    {
      'samples_count': 4,
      'samples_distinct_1': 0.51249,
      'held_out_distinct_1': 0.6,
      'samples_mean_bytes': 1234.56,
    }
  )
  assert table.splitlines()[0].startswith('4 sample(s)')
  assert [line.split() for line in table.splitlines()[1:]] == [
    ['samples', 'held-out'],
    ['0.512', '0.600', 'distinct-1'],
    ['1,234.6', '–', 'bytes'],
  ]
