"""Figures of texts: the examples of the docstrings, and Chinese."""

import collections

import pytest
from helpers.texts import sentences

from lm.generation import diversity


def test_units_of_the_docstring():
  found = diversity.split('Big dogs, big\n我们')
  assert found == ['Big', 'dogs', ',', 'big', '我', '们']
  assert diversity.split(' \n\t') == []


@pytest.mark.parametrize('n', [1, 2])
def test_distinct_of_the_docstring(n):
  assert diversity.distinct(['a b a', 'a c'], n) == pytest.approx(0.6)


def test_repetition_of_the_docstring():
  assert diversity.repetition(['a b a b', 'a b c'], 2) == pytest.approx(1 / 6)


def test_lengths_of_the_docstring():
  assert diversity.lengths(['a b', '我'], [4, 2]) == {
    'mean_words': 1.5,
    'mean_tokens': 3,
    'mean_bytes': 3,
  }


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


def test_a_loop_is_told_from_text():
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
