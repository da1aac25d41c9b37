"""The units that cleaning rules count: words, or characters without blanks.

Scripts without blanks between words (Han, kana, Thai, ...) are counted in
characters that are not blank, two per word: without punctuation, the words of
the People's Daily of January 1998, segmented by hand, have 1.76 on average.
"""

import collections
import functools
import itertools
import re

import numpy as np

from lm.data.text import scripts

CHARACTERS_PER_WORD = 2


class Units:
  """Units and lines of a text, each computed at its first use."""

  def __init__(self, text: str):
    self._text = text

  @functools.cached_property
  def counts(self) -> scripts.Counts:
    """Letters by script, digits and blanks."""
    return scripts.count(self._text)

  @functools.cached_property
  def unspaced(self) -> bool:
    """Whether the units are characters: most letters are of such scripts."""
    return self.counts.share(scripts.UNSPACED) >= 0.5

  @property
  def per_word(self) -> int:
    """Number of units that count as a word."""
    return CHARACTERS_PER_WORD if self.unspaced else 1

  @functools.cached_property
  def characters(self) -> int:
    """Characters that are not blank."""
    return len(self._text) - self.counts.blanks

  @functools.cached_property
  def lines(self) -> list[str]:
    """Lines that are not blank, without the blanks around them."""
    return list(filter(None, map(str.strip, self._text.split('\n'))))

  @functools.cached_property
  def _words(self) -> tuple[list[str], np.ndarray]:
    words = self._text.split()
    number = collections.defaultdict(itertools.count().__next__)
    ids_L = np.fromiter(map(number.__getitem__, words), np.int64, len(words))
    return list(number), ids_L

  @property
  def distinct_words(self) -> list[str]:
    """Words, each once; if units are words, `ids_L` are indices into it."""
    return self._words[0]

  @functools.cached_property
  def ids_L(self) -> np.ndarray:
    """Numbers of the units, in order; equal units have equal numbers."""
    if not self.unspaced:
      return self._words[1]
    text = ''.join(self._text.split())
    data = text.encode('utf-32-le', 'surrogatepass')
    return np.frombuffer(data, np.uint32).astype(np.int64)

  @functools.cached_property
  def lengths_L(self) -> np.ndarray:
    """Characters of each unit."""
    if self.unspaced:
      return np.ones(self.ids_L.size, np.int64)
    lengths = map(len, self.distinct_words)
    return np.fromiter(lengths, np.int64, len(self.distinct_words))[self.ids_L]

  def letter_share(self) -> float:
    """The share of words with a letter, or of characters that are letters."""
    if self.unspaced:
      return sum(self.counts.letters.values()) / self.characters
    have = [w.isalpha() or bool(_LETTER.search(w)) for w in self.distinct_words]
    return float(np.array(have)[self.ids_L].mean())


_LETTER = re.compile(r'[^\W\d_]')


@functools.lru_cache(maxsize=1)
def of(text: str) -> Units:
  """The units of a text; consecutive rules share them."""
  return Units(text)
