"""What a word is in Chinese, which puts no blanks between words.

`characters`: each Han character is a word. `segmented`: words are those of a
segmenter, as in whole word masking for Chinese (Cui et al. 2021, section 3.1);
the segmenter there is LTP, here it is jieba: the likeliest path through a
dictionary of words and their frequencies, and a hidden Markov model for words
that are not in it.
"""

import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable

from lm import errors

WORDS = ('characters', 'segmented')

# Han characters -> their words, in order.
Segmenter = Callable[[str], list[str]]


def describe(kind: str) -> str:
  """What words depend on, with the segmenter's version.

  Raises:
    UserError: its package is not installed.
  """
  if kind == 'characters':
    return kind
  if importlib.util.find_spec('jieba') is None:
    raise errors.UserError(
      "data.words='segmented' needs the package jieba, which is not installed; "
      'python -m pip install --no-deps -r requirements-assets.txt, or give '
      "data.words='characters'"
    )
  return f'{kind}, jieba {importlib.metadata.version("jieba")}'


def make(kind: str) -> Segmenter | None:
  """The segmenter of one of WORDS; None: each character is a word.

    '使用语言模型来预测下一个词的' -> ['使用', '语言', '模型', '来', '预测', \
      '下', '一个', '词', '的']

  Raises:
    UserError: as `describe`.
  """
  describe(kind)
  return None if kind == 'characters' else _jieba()


@functools.cache
def _jieba() -> Segmenter:
  """Loads the dictionary, which takes half a second, once a process."""
  with warnings.catch_warnings():
    # Its patterns have invalid escapes, and it imports pkg_resources.
    warnings.simplefilter('ignore')
    import jieba

    tokenizer = jieba.Tokenizer()
    # As its `initialize` does, but for what that says on stderr, and for the
    # file in the folder of temporary files that it writes and would trust.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(
      tokenizer.get_dict_file()
    )
  tokenizer.initialized = True
  return tokenizer.lcut
