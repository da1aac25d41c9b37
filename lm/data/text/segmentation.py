"""Words in Chinese, which puts no blanks between them.

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
  """Everything that words depend on: the kind and the segmenter's version.

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
  """The segmenter for one of WORDS; None if each character is a word.

    '使用语言模型来预测下一个词的' -> ['使用', '语言', '模型', '来', '预测', \
      '下', '一个', '词', '的']

  Raises:
    UserError: its package is not installed.
  """
  describe(kind)
  return None if kind == 'characters' else _jieba()


@functools.cache
def _jieba() -> Segmenter:
  """Loads the dictionary, which takes half a second, once per process."""
  with warnings.catch_warnings():
    # Python warns of invalid escapes in jieba and of its pkg_resources.
    warnings.simplefilter('ignore')
    import jieba

    tokenizer = jieba.Tokenizer()
    # Like `initialize`, but without its lines on stderr and without the cache
    # in the folder of temporary files, which it would trust.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(
      tokenizer.get_dict_file()
    )
  tokenizer.initialized = True
  return tokenizer.lcut
