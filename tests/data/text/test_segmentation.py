"""Chinese words: where they begin, with a segmenter and without one."""

import importlib.util
import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
from helpers.environment import ROOT

from experiments import base
from lm import errors
from lm.config import resolve as config_lib
from lm.data import prepare
from lm.data.text import segmentation, words

needs_jieba = pytest.mark.skipif(
  importlib.util.find_spec('jieba') is None, reason='jieba is not installed'
)


def split(text, segment):
  """The words of a text, by the index of each of its bytes."""
  data = text.encode()
  index = words.word_index(text, np.arange(len(data)), segment)
  edges = np.flatnonzero(np.diff(index, prepend=-1))
  bounds = [*edges.tolist(), len(data)]
  # Strict: a boundary inside a character could not be decoded.
  return [data[a:b].decode() for a, b in itertools.pairwise(bounds)]


def pairs(run):
  """Words of two characters."""
  return [run[i : i + 2] for i in range(0, len(run), 2)]


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', []),
    ('我们今天', ['我们', '今天']),
    ('ab 我们今x', ['ab', ' 我们', '今', 'x']),
    ('今天，\n 天好', ['今天', '，', '\n', ' 天好']),
    # A mark belongs to its character, kana and Hangul are not Han.
    ('葛\U000e0100城市', ['葛\U000e0100城', '市']),
    ('日本ひら한국어', ['日本', 'ひ', 'ら', '한국어']),
    ('𠀀𠀁中', ['𠀀𠀁', '中']),
  ],
)
def test_only_runs_of_han_are_segmented(text, expected):
  assert split(text, pairs) == expected


def test_text_without_han_is_as_without_a_segmenter():
  rng = random.Random(0)
  for _ in range(100):
    text = ''.join(rng.choices('ab1_ .,\t\n-éひ한\u0301', k=40))
    assert split(text, pairs) == split(text, None) == words.split(text)


def test_segments_are_characters_without_a_segmenter():
  text = '下一个词的 probability。'
  expected = ['下', '一', '个', '词', '的', ' probability', '。']
  assert segmentation.make('characters') is None
  assert split(text, None) == expected == words.split(text)


def test_a_missing_segmenter_is_reported_in_one_line(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name == 'jieba' else find(name, *rest),
  )
  assert segmentation.describe('characters') == 'characters'
  for function in (segmentation.describe, segmentation.make):
    with pytest.raises(errors.UserError) as caught:
      function('segmented')
    message = str(caught.value)
    assert "data.words='segmented' needs the package jieba" in message
    assert 'pip install --no-deps -r requirements-assets.txt' in message
    assert '\n' not in message


@needs_jieba
def test_examples_of_the_docstrings():
  segment = segmentation.make('segmented')
  assert segment('使用语言模型来预测下一个词的') == [
    *('使用', '语言', '模型', '来', '预测', '下', '一个', '词', '的'),
  ]
  text = '下一个词的 probability。'
  expected = ['下', '一个', '词', '的', ' probability', '。']
  assert split(text, segment) == expected


@needs_jieba
def test_words_of_the_segmenter_never_cut_a_character():
  segment = segmentation.make('segmented')
  rng = random.Random(1)
  alphabet = '我们今天去北京研究生命的起源一二〇々㐀𠀀。，abc 1\n한\U000e0100'
  for _ in range(200):
    text = ''.join(rng.choices(alphabet, k=30))
    found, characters = split(text, segment), words.split(text)
    assert ''.join(found) == text
    # A word of the segmenter is one or several of the words without it.
    ends = [set(np.cumsum(list(map(len, x)))) for x in (found, characters)]
    assert ends[0] <= ends[1]


@needs_jieba
def test_loading_the_dictionary_says_and_writes_nothing(tmp_path):
  code = (
    'import sys\n'
    'from lm.data.text import segmentation\n'
    # Compiled anew, since only then Python warns of its patterns.
    'sys.pycache_prefix = "/nowhere"\n'
    "segment = segmentation.make('segmented')\n"
    "assert segment is segmentation.make('segmented')\n"
    "assert segment('我们今天') == ['我们', '今天']\n"
  )
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    cwd=ROOT,
    env={'TMPDIR': str(tmp_path), 'PATH': '', 'PYTHONDONTWRITEBYTECODE': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  assert not list(tmp_path.iterdir())


TEXTS = ['我们今天去北京大学', '他们研究生命的起源', '语言模型预测下一个词']


def prepare_texts(folder, directory, **fields):
  for number, text in enumerate(TEXTS):
    (folder / f'{number}.txt').write_text(text, encoding='utf-8')
  config = base.get_config()
  config.data.update(
    source='files',
    path=str(folder),
    directory=str(directory),
    tokenizer='bytes',
    near_duplicates=0.0,
  )
  config.data.cleaning.rules = ()
  config.data.update(fields)
  return prepare.prepare(config_lib.resolve(config).data)


def word_counts(prepared):
  """Words of each document, its end not counted."""
  splits = [prepared.train(), *map(prepared.held_out, prepare.HELD_OUT)]
  tokenizer, counts = prepared.tokenizer(), {}
  for split in splits:
    for document in range(len(split)):
      ids, word, _ = split.read(document)
      counts[tokenizer.decode(ids)] = int(word[-1])
  return counts


@needs_jieba
def test_prepared_words_are_those_of_the_option(tmp_path):
  corpus = tmp_path / 'corpus'
  corpus.mkdir()
  characters = prepare_texts(corpus, tmp_path / 'a')
  assert word_counts(characters) == {text: len(text) for text in TEXTS}
  segmented = prepare_texts(corpus, tmp_path / 'b', words='segmented')
  segment = segmentation.make('segmented')
  assert word_counts(segmented) == {t: len(segment(t)) for t in TEXTS}
  assert segmented.hash != characters.hash
  # Worker processes find the same words.
  others = prepare_texts(corpus, tmp_path / 'c', words='segmented', processes=1)
  assert word_counts(others) == word_counts(segmented)
  with pytest.raises(errors.UserError, match='other text or settings'):
    prepare_texts(corpus, tmp_path / 'a', words='segmented')
