"""Boundaries of words in any script, for whole-word masking."""

import functools
import itertools
import re
import unicodedata

import numpy as np

from lm.data.text import scripts, segmentation

LINE_END, BLANK, LETTER, SINGLE, OTHER, EXTEND = range(6)

# Later rows win. Ranges are code points of scripts that put no blank between
# words: Thai and Lao, Myanmar, Khmer, kana, Han.
_CLASSES = (
  (LETTER, r'\w'),
  (
    SINGLE,
    r'[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u3029'
    r'\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff'
    r'\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f'
    r'\U00020000-\U0003ffff]',
  ),
  (BLANK, r'\s'),
  (LINE_END, r'[\n\r\x0b\x0c\x85\u2028\u2029]'),
)


def split(text: str) -> list[str]:
  """The words of `text`, in order; joined they are `text` again."""
  starts = np.flatnonzero(_is_start(code_points(text))).tolist()
  bounds = itertools.pairwise([*starts, len(text)])
  return [text[start:end] for start, end in bounds]


def word_index(
  text: str,
  byte_starts: np.ndarray,
  segment: segmentation.Segmenter | None = None,
) -> np.ndarray:
  """The index of the word that each token belongs to.

  Runs of letters, digits, marks and underscores are words, and so are runs of
  punctuation and runs of line ends; blanks belong to the word after them; an
  ideograph, a kana or a letter of another script that is written without
  blanks is a word of its own. A token belongs to the word of its first byte.

    text         'Big dogs,\\n我们'
    words        'Big' ' dogs' ',' '\\n' '我' '们'
    begin at     0     3       8   9    10   13     (bytes)
    byte_starts  [0 1 3 4 6 8 9 10 11 12 13]
    returns      [0 0 1 1 1 2 3  4  4  4  5]

  With a segmenter, runs of Han are split into the words that it finds; all else
  is as without (after Cui et al. 2021, table 1):

    text         '下一个词的 probability。'
    without      '下' '一' '个' '词' '的' ' probability' '。'
    segmented    '下' '一个' '词' '的' ' probability' '。'

  Args:
    text: valid Unicode.
    byte_starts: offset of each token's first byte in the UTF-8 of `text`,
      in any order.
    segment: see `segmentation.make`.

  Returns:
    An int32 array of the shape of `byte_starts`.
  """
  codes = code_points(text)
  widths = 1 + sum((codes >= bound).astype(np.int8) for bound in _WIDER)
  offsets = np.cumsum(widths, dtype=np.int64) - widths
  starts = _is_start(codes)
  if segment is not None:
    _segment_han(codes, starts, segment)
  word_starts = offsets[starts]
  byte_starts = np.asarray(byte_starts)
  words = np.searchsorted(word_starts, byte_starts, side='right') - 1
  return words.astype(np.int32)


# The code points from which UTF-8 needs a second, third and fourth byte.
_WIDER = (0x80, 0x800, 0x10000)


def code_points(text: str) -> np.ndarray:
  """The code points of `text`, uint32."""
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def classes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The class of each code point, and whether it extends the one before.

  A mark has the class of the character that it is on; at the start, a letter's.
  """
  kinds = _class_table()[codes]
  extends = kinds == EXTEND
  if extends.any():
    base = np.maximum.accumulate(np.where(extends, -1, np.arange(codes.size)))
    kinds = np.where(base < 0, LETTER, kinds[base]).astype(kinds.dtype)
  return kinds, extends


def _is_start(codes: np.ndarray) -> np.ndarray:
  """Whether a word begins at each code point."""
  if not codes.size:
    return np.zeros(0, bool)
  kinds, extends = classes(codes)
  before, here = kinds[:-1], kinds[1:]
  starts = np.ones(codes.size, bool)
  starts[1:] = (before != BLANK) & ((before != here) | (here == SINGLE))
  starts[1:] &= ~extends[1:]
  return starts


def _segment_han(codes: np.ndarray, starts: np.ndarray, segment):
  """Moves the starts within runs of Han to those of the segmenter's words."""
  # A mark stays with its character, and is itself no character of a run.
  _, extends = classes(codes)
  places = np.flatnonzero(~extends)
  for run in _HAN.finditer(codes[places].tobytes().decode('utf-32-le')):
    lengths = list(map(len, segment(run.group())))
    # A blank before the run belongs to its first word: that start stays.
    starts[places[run.start() + 1 : run.end()]] = False
    starts[places[run.start() + np.cumsum(lengths[:-1], dtype=int)]] = True


_HAN = re.compile(f'[{scripts.SCRIPTS["Han"]}]+')


@functools.cache
def _class_table() -> np.ndarray:
  """The class of every code point, by Python's Unicode tables."""
  every = ''.join(map(chr, range(0x110000)))
  table = np.full(len(every), OTHER, np.uint8)
  for kind, pattern in _CLASSES:
    for run in re.finditer(f'(?:{pattern})+', every):
      table[run.start() : run.end()] = kind
  categories = map(unicodedata.category, every)
  table[[code for code, c in enumerate(categories) if c[0] == 'M']] = EXTEND
  table[[0x200C, 0x200D]] = EXTEND  # Joiners, inside words and inside emoji.
  return table
