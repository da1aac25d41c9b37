"""Near duplicates are found by their shingles; one of each pair is kept."""

import math
import random

import numpy as np
import pytest
from helpers.texts import sentences

from lm.data import duplicates
from lm.data.text import words


def slow_shingles(text):
  """Runs of five words, as a set of tuples."""
  found = [w.strip() for w in words.split(text.lower())]
  found = [w for w in found if any(c.isalnum() for c in w)]
  count = min(len(found), duplicates.SHINGLE)
  if not count:
    return set()
  return {tuple(found[i : i + count]) for i in range(len(found) - count + 1)}


def jaccard(one, other):
  a, b = slow_shingles(one), slow_shingles(other)
  return len(a & b) / len(a | b)


def with_changed_words(text, count, seed):
  """The text with some of its words replaced by ones of its own."""
  rng, found = random.Random(seed), text.split(' ')
  for number, place in enumerate(rng.sample(range(len(found)), count)):
    found[place] = f'new{seed}x{number}'
  return ' '.join(found)


def test_the_example_of_the_docstring():
  assert len(duplicates.shingles('To be, or not to be')) == 2
  first = duplicates.shingles('to be or not to')
  second = duplicates.shingles('be or not to be')
  both = duplicates.shingles('To be, or not to be')
  assert sorted([*first, *second]) == both.tolist()


@pytest.mark.parametrize(
  'text',
  [
    sentences(0, 30),
    '我们学习机器翻译,我们学习。Then we 学习 again, and again!' * 3,
    'one two',
    'क्या आप हिन्दी बोलते हैं? ' * 2 + 'नहीं',
    '... !?',
    '',
  ],
)
def test_as_many_shingles_as_there_are_runs_of_words(text):
  assert len(duplicates.shingles(text)) == len(slow_shingles(text))


def test_case_blanks_and_punctuation_do_not_count():
  text = sentences(1, 10)
  other = text.upper().replace(' ', '\n  ').replace('.', ' -- ')
  assert np.array_equal(duplicates.shingles(text), duplicates.shingles(other))
  # But where a word ends does.
  one, other = 'a be see dee effs', 'ab e see dee effs'
  assert duplicates.shingles(one) != duplicates.shingles(other)


@pytest.mark.parametrize('changed', [0, 4, 15, 60])
def test_sketches_estimate_the_jaccard_similarity(changed):
  text = sentences(2, 60)
  other = with_changed_words(text, changed, seed=0)
  agree = np.mean(duplicates.sketch(text) == duplicates.sketch(other))
  assert agree == pytest.approx(jaccard(text, other), abs=4 * 0.045)
  assert changed or agree == 1


def planted(originals, copies, changed):
  texts = [sentences(seed, 30) for seed in range(originals)]
  texts += [with_changed_words(texts[i], changed, i) for i in range(copies)]
  return texts, np.stack([duplicates.sketch(text) for text in texts])


def test_planted_copies_are_dropped_and_nothing_else_is():
  texts, sketches = planted(60, 20, changed=2)
  assert min(jaccard(texts[i], texts[60 + i]) for i in range(20)) > 0.85
  twin, similarity = duplicates.find(sketches, np.arange(80), 0.8)
  assert twin.tolist() == [-1] * 60 + list(range(20))
  assert (similarity[60:] >= 0.8).all()
  assert (similarity[:60] == 0).all()


def test_the_one_that_comes_first_in_the_order_is_kept():
  _, sketches = planted(30, 10, changed=2)
  twin, _ = duplicates.find(sketches, np.arange(40)[::-1], 0.8)
  assert twin.tolist() == [*range(30, 40)] + [-1] * 30


def test_only_the_documents_of_the_order_are_looked_at():
  _, sketches = planted(10, 5, changed=0)
  twin, _ = duplicates.find(sketches, np.arange(10), 0.8)
  assert (twin == -1).all()


@pytest.mark.parametrize('threshold', [0.7, 0.75, 0.8, 0.9, 0.99, 1.0])
def test_no_pair_at_the_threshold_is_missed(threshold):
  rng = np.random.default_rng(0)
  first = rng.integers(2**32 - 1, size=128, dtype=np.uint32)
  differ = 128 - math.ceil(threshold * 128)
  for extra, expected in ((0, 0), (1, -1)):
    # The hardest case: each difference is in another band.
    hit = [band.start for band in duplicates.bands(threshold)]
    for places in (hit, rng.permutation(128)):
      places = places[: differ + extra]
      second = first.copy()
      second[places] += 1
      sketches = np.stack([first, second])
      twin, _ = duplicates.find(sketches, np.arange(2), threshold)
      assert twin.tolist() == [-1, expected]


def test_texts_without_words_are_near_to_none():
  texts = ['... !?', '-- --', '***', 'a word', 'a word']
  sketches = np.stack([duplicates.sketch(text) for text in texts])
  twin, _ = duplicates.find(sketches, np.arange(5), 0.8)
  assert twin.tolist() == [-1] * 4 + [3]


@pytest.mark.parametrize('threshold', [0.5, 0.8])
def test_no_two_that_are_left_are_near_each_other(threshold):
  """Also where each is near to the next, but not to the one after it."""
  texts = [sentences(3, 40)]
  for seed in range(30):
    texts.append(with_changed_words(texts[-1], 3, seed))
  sketches = np.stack([duplicates.sketch(text) for text in texts])
  twin, _ = duplicates.find(sketches, np.arange(len(texts)), threshold)
  agree = (sketches[:, None] == sketches[None]).mean(axis=2)
  left = np.flatnonzero(twin < 0)
  among = agree[np.ix_(left, left)] - np.eye(len(left))
  assert 1 < len(left) < len(texts)
  assert among.max() < threshold
  for number in np.flatnonzero(twin >= 0):
    assert twin[number] < number
    assert agree[number, twin[number]] >= threshold
