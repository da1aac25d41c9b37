"""Prepared data: built once, complete or not at all, and lossless."""

import errno
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import types

import ml_collections
import numpy as np
import pytest
from helpers.environment import ROOT
from helpers.texts import sentences

from experiments import base
from lm import errors
from lm.data import (
  collect,
  prepare,
  sources,
  splits,
  store,
  tally,
  tokenizer as tokenizer_lib,
  windows,
  workers,
)


def settings(path, directory, **fields):
  """A resolved `config.data` on the files at `path`."""
  data = base.get_config().data
  data.update(
    source='files',
    path=str(path),
    directory=str(directory),
    tokenizer='bytes',
    vocab_size=526,
    held_out_fraction=0.2,
    near_duplicates=0.0,
  )
  # The texts here are too short and too much alike for these.
  data.cleaning.rules = ()
  data.update(fields)
  return ml_collections.FrozenConfigDict(data)


def write_texts(folder, texts, names=None):
  folder.mkdir(exist_ok=True)
  for number, text in enumerate(texts):
    name = names[number] if names else f'{number:02d}.txt'
    (folder / name).write_bytes(text.encode())
  return folder


def texts_of(prepared, split):
  """The texts that the ids of a split spell."""
  tokenizer, ids = prepared.tokenizer(), split_of(prepared, split)
  return [tokenizer.decode(ids.read(d)[0]) for d in range(len(ids))]


def split_of(prepared, split):
  return prepared.train() if split == 'train' else prepared.held_out(split)


def written(folder):
  """Every file below a folder, with its time and content."""
  return {
    path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


TEXTS = [
  *(sentences(seed, 20) for seed in range(8)),
  '我们 are here.\r\n\r\n二〇〇〇年！👩‍👩‍👧 e\u0301\n',
  'Tab\there ▁ \u3000 blank \x00 end',
]


@pytest.fixture
def corpus(tmp_path):
  return write_texts(tmp_path / 'corpus', TEXTS)


@pytest.mark.parametrize('kind', tokenizer_lib.KINDS)
def test_ids_spell_the_text_and_one_eos_ends_each_document(
  corpus, tmp_path, kind
):
  size = 526 if kind == 'bytes' else 700
  prepared = prepare.prepare(
    settings(corpus, tmp_path / 'p', tokenizer=kind, vocab_size=size)
  )
  found = []
  for name in prepare.SPLITS:
    ids = split_of(prepared, name)
    texts = texts_of(prepared, name)
    found += texts
    for document, text in enumerate(texts):
      ids_L, word_L, start_L = ids.read(document)
      assert (ids_L == tokenizer_lib.EOS).nonzero()[0].tolist() == [
        len(ids_L) - 1
      ]
      assert (ids_L[:-1] >= tokenizer_lib.FIRST_BYTE).all()
      # Each token begins where the one before it ends; EOS at the text's end.
      pieces = prepared.tokenizer().byte_lengths_V[ids_L]
      assert np.array_equal(start_L, np.cumsum(pieces) - pieces)
      assert start_L[-1] == len(text.encode())
      assert word_L[0] == 0
      # A piece of these may hold several words, and then they are passed.
      steps = np.diff(word_L)
      assert steps.min() >= 0
      assert steps.max() <= 1 or kind in ('unigram', 'bpe')
      assert word_L[-1] == word_L[-2] + 1
    manifest = prepared.manifest
    assert manifest['documents'][name] == len(texts)
    assert manifest['bytes'][name] == sum(len(t.encode()) for t in texts)
    assert manifest['tokens'][name] == int(ids.lengths.sum())
  assert sorted(found) == sorted(TEXTS)


def test_words_and_byte_starts_at_a_spot(tmp_path):
  text = 'Big dogs,\n我们'
  others = [f'number {i}' for i in range(2)]
  corpus = write_texts(tmp_path / 'c', [text, *others])
  prepared = prepare.prepare(settings(corpus, tmp_path / 'p'))
  for name in prepare.SPLITS:
    ids = split_of(prepared, name)
    if texts_of(prepared, name) == [text]:
      _, word_L, start_L = ids.read(0)
      words = [0] * 3 + [1] * 5 + [2, 3] + [4] * 3 + [5] * 3 + [6]
      assert word_L.tolist() == words
      assert start_L.tolist() == list(range(17))
      return
  raise AssertionError('the document is in no split')


def test_long_documents_are_read_across_blocks(tmp_path):
  text = sentences(0, 400)
  assert len(text) > 2 * store.BLOCK
  corpus = write_texts(tmp_path / 'c', [text + str(i) for i in range(3)])
  prepared = prepare.prepare(settings(corpus, tmp_path / 'p'))
  train = prepared.train()
  whole = train.read(0)[0]
  for start, stop in [
    (0, 1),
    (store.BLOCK - 1, store.BLOCK + 1),
    (store.BLOCK, 2 * store.BLOCK),
    (5, len(whole)),
  ]:
    assert np.array_equal(train.read(0, start, stop)[0], whole[start:stop])


def test_prepared_data_is_found_again_and_not_written_again(corpus, tmp_path):
  first = prepare.prepare(settings(corpus, tmp_path / 'p'))
  before = written(tmp_path / 'p')
  later = time.time() + 100
  for path in corpus.iterdir():
    os.utime(path, (later, later))
  moved = corpus.rename(tmp_path / 'moved')
  second = prepare.prepare(settings(moved, tmp_path / 'p'))
  assert second.hash == first.hash
  assert written(tmp_path / 'p') == before


@pytest.mark.parametrize(
  'fields',
  [
    {'held_out_fraction': 0.3},
    {'held_out_bytes': 4096},
    {'document_bytes': 2048},
    {'near_duplicates': 0.7},
    {'cleaning': ml_collections.ConfigDict({'rules': ('unicode',)})},
    {'vocab_size': 600},
    {'tokenizer': 'char', 'vocab_size': 600},
  ],
)
def test_a_relevant_setting_asks_for_other_data(corpus, tmp_path, fields):
  prepare.prepare(settings(corpus, tmp_path / 'p'))
  with pytest.raises(errors.UserError, match=r'data\.directory=.*other text'):
    prepare.prepare(settings(corpus, tmp_path / 'p', **fields))


def test_what_does_not_change_the_data_does_not_ask_for_other(corpus, tmp_path):
  first = prepare.prepare(settings(corpus, tmp_path / 'p'))
  fields = {'sequence_length': 7, 'batch_size': 3, 'threads': 0, 'processes': 2}
  again = prepare.prepare(settings(corpus, tmp_path / 'p', **fields))
  assert again.hash == first.hash


def hash_of(path, directory, *, language=None, **cleaning):
  data = ml_collections.ConfigDict(settings(path, directory).to_dict())
  data.language = language
  data.cleaning.update(cleaning)
  return prepare.prepare(data).hash


def test_only_what_the_rules_read_asks_for_other_data(corpus, tmp_path):
  p = tmp_path / 'p'
  first = hash_of(corpus, p, rules=('unicode', 'scrub'))
  same = [
    {'rules': ('scrub', 'unicode'), 'min_words': 7, 'language': 'en'},
    {'rules': ('unicode,scrub,language',), 'max_digits': 0.5},
  ]
  # Where it is off, scrub is no rule.
  assert {hash_of(corpus, p, **fields) for fields in same} == {first}
  other = [
    {'rules': ('unicode', 'scrub'), 'scrub': True},
    {'rules': ('unicode', 'length'), 'min_words': 1, 'min_characters': 1},
    {'rules': ('unicode', 'length'), 'min_words': 2, 'min_characters': 1},
    {'rules': ('unicode', 'language'), 'language': 'Latin'},
    {'rules': ('unicode', 'language'), 'language': 'en'},
  ]
  hashes = {first}
  for number, fields in enumerate(other):
    hashes.add(hash_of(corpus, tmp_path / f'p{number}', **fields))
  assert len(hashes) == 1 + len(other)


def test_packaged_text_is_changed_only_where_that_is_asked_for():
  data = base.get_config().data
  source = types.SimpleNamespace(name='sotu', packaged=True)

  def rules():
    return prepare._collect_settings(data, [source]).rules

  assert rules() == (('unicode',),)
  data.language, data.cleaning.scrub = 'en', True
  assert rules() == (('unicode', 'language', 'scrub'),)


def test_any_changed_byte_asks_for_other_data(corpus, tmp_path):
  hashes = {prepare.prepare(settings(corpus, tmp_path / 'p')).hash}
  for number, path in enumerate(sorted(corpus.iterdir())):
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 3] = ord('~')
    path.write_bytes(changed.decode(errors='replace').encode())
    prepared = prepare.prepare(settings(corpus, tmp_path / f'p{number}'))
    hashes.add(prepared.hash)
    path.write_bytes(content)
  assert len(hashes) == 1 + len(TEXTS)


def test_duplicates_and_empty_files_are_dropped_and_counted(tmp_path):
  corpus = write_texts(
    tmp_path / 'c', [*TEXTS, TEXTS[0], TEXTS[3], TEXTS[0], '', ' \n']
  )
  prepared = prepare.prepare(settings(corpus, tmp_path / 'p'))
  found = tally.reasons(prepared.manifest['sources'])
  assert found == {'duplicate': 3, 'empty': 2}
  texts = [t for name in prepare.SPLITS for t in texts_of(prepared, name)]
  assert sorted(texts) == sorted(TEXTS)


def test_the_split_depends_on_the_texts_alone(tmp_path):
  texts = [sentences(seed, 5) for seed in range(30)]
  shuffled = random.Random(1).sample(texts, len(texts))
  names = [f'x{number:03d}.md' for number in range(30)]
  found = []
  for number, (some, called) in enumerate([(texts, None), (shuffled, names)]):
    corpus = write_texts(tmp_path / f'c{number}', some, called)
    prepared = prepare.prepare(settings(corpus, tmp_path / f'p{number}'))
    found.append({n: set(texts_of(prepared, n)) for n in prepare.SPLITS})
  assert found[0] == found[1]
  assert {name: len(part) for name, part in found[0].items()} == {
    'train': 18,
    'validation': 6,
    'test': 6,
  }
  assert not found[0]['train'] & found[0]['test']
  assert not found[0]['validation'] & found[0]['test']


def test_a_new_document_moves_few_others(tmp_path):
  texts = [sentences(seed, 5) for seed in range(31)]
  parts = []
  for count in (30, 31):
    corpus = write_texts(tmp_path / f'c{count}', texts[:count])
    prepared = prepare.prepare(settings(corpus, tmp_path / f'p{count}'))
    parts.append({n: set(texts_of(prepared, n)) for n in prepare.SPLITS})
  assert all(len(parts[0][n] - parts[1][n]) <= 2 for n in prepare.SPLITS)


def test_held_out_bytes_bound_each_split(tmp_path):
  texts = [sentences(seed, 10) for seed in range(30)]
  corpus = write_texts(tmp_path / 'c', texts)
  limit = 1500
  prepared = prepare.prepare(
    settings(corpus, tmp_path / 'p', held_out_bytes=limit)
  )
  for name in prepare.HELD_OUT:
    assert prepared.manifest['documents'][name] >= 1
    one = prepared.manifest['documents'][name] == 1
    assert prepared.manifest['bytes'][name] <= limit or one


def test_every_held_out_byte_is_there_as_text_too(corpus, tmp_path):
  prepared = prepare.prepare(settings(corpus, tmp_path / 'p'))
  for name in prepare.HELD_OUT:
    path = prepared.directory / 'held_out' / f'{name}.jsonl'
    with open(path, encoding='utf-8', newline='\n') as f:
      texts = [json.loads(line)['text'] for line in f]
    assert texts == texts_of(prepared, name)


def test_nothing_but_data_is_left_in_the_folder(corpus, tmp_path):
  prepare.prepare(settings(corpus, tmp_path / 'p'))
  assert sorted(p.name for p in (tmp_path / 'p').iterdir()) == [
    'held_out',
    'manifest.json',
    'tokenizer',
    'train',
  ]
  assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus', 'p']


def test_two_preparations_of_the_same_are_the_same(corpus, tmp_path):
  for name in 'ab':
    prepare.prepare(
      settings(corpus, tmp_path / name, tokenizer='unigram', vocab_size=600)
    )
  a, b = (
    {
      path: hashlib.sha256(content).hexdigest()
      for path, (_, content) in written(tmp_path / name).items()
      # ArrayRecord files differ in padding; their records are compared below.
      if path.suffix != '.array_record'
    }
    for name in 'ab'
  )
  assert a == b
  splits = [store.Split(tmp_path / name / 'train') for name in 'ab']
  for document in range(len(splits[0])):
    assert np.array_equal(*(s.read(document) for s in splits))


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(errno.ENOSPC)])
@pytest.mark.parametrize('moment', ['_tokenize', '_make_tokenizer'])
def test_an_interrupted_preparation_leaves_nothing(
  corpus, tmp_path, monkeypatch, error, moment
):
  def stop(*args):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(prepare._Job, moment, stop)
    with pytest.raises(type(error)):
      prepare.prepare(settings(corpus, tmp_path / 'p'))
  assert [p.name for p in tmp_path.iterdir()] == ['corpus']
  prepare.prepare(settings(corpus, tmp_path / 'p'))


_PREPARE = """
import os, pathlib, signal, sys
import ml_collections
from lm.data import prepare

fields, stop_at = eval(sys.argv[1]), sys.argv[2]

def report(line):
  if stop_at and stop_at in line:
    os.kill(os.getpid(), signal.SIGKILL)

prepared = prepare.prepare(ml_collections.ConfigDict(fields), report=report)
print(prepared.hash)
"""


def start_process(data, stop_at=''):
  return subprocess.Popen(
    [sys.executable, '-c', _PREPARE, repr(data.to_dict()), stop_at],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_killed_preparation_is_swept_up_by_the_next(corpus, tmp_path):
  data = settings(corpus, tmp_path / 'p')
  process = start_process(data, 'training tokens')
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert not (tmp_path / 'p').exists()
  assert list(tmp_path.glob('.p.*.tmp'))
  prepare.prepare(data)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus', 'p']


def test_two_processes_can_prepare_the_same_at_once(corpus, tmp_path):
  data = settings(corpus, tmp_path / 'p')
  processes = [start_process(data) for _ in range(2)]
  results = [process.communicate() for process in processes]
  assert [process.returncode for process in processes] == [0, 0], results
  assert len({out for out, _ in results}) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus', 'p']


def test_data_of_a_faster_process_are_used(corpus, tmp_path, monkeypatch):
  data = settings(corpus, tmp_path / 'p')
  tokenize = prepare._Job._tokenize

  def overtaken(*args):
    monkeypatch.setattr(prepare._Job, '_tokenize', tokenize)
    with monkeypatch.context() as patch:
      patch.setattr(os, 'getpid', lambda: 1)
      prepare.prepare(data)
    return tokenize(*args)

  monkeypatch.setattr(prepare._Job, '_tokenize', overtaken)
  prepared = prepare.prepare(data)
  assert texts_of(prepared, 'train')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus', 'p']


def test_data_of_a_faster_process_with_other_settings_are_not_used(
  corpus, tmp_path, monkeypatch
):
  tokenize = prepare._Job._tokenize

  def overtaken(*args):
    monkeypatch.setattr(prepare._Job, '_tokenize', tokenize)
    prepare.prepare(settings(corpus, tmp_path / 'p', held_out_fraction=0.3))
    return tokenize(*args)

  monkeypatch.setattr(prepare._Job, '_tokenize', overtaken)
  with pytest.raises(errors.UserError, match=r'data\.directory=.*other text'):
    prepare.prepare(settings(corpus, tmp_path / 'p'))
  assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus', 'p']


_STOPPED = """
import os, signal, sys
from absl import app
import run
from lm.data import prepare
prepare._Job._tokenize = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
app.run(run.main, flags_parser=run.parse_flags)
"""


def test_sigterm_leaves_nothing_that_is_half_prepared(corpus, tmp_path):
  fields = {
    **{'source': 'files', 'path': corpus, 'directory': tmp_path / 'p'},
    **{'tokenizer': 'bytes', 'cleaning.rules': '()', 'near_duplicates': 0},
  }
  flags = [f'--config.data.{name}={value}' for name, value in fields.items()]
  config = f'--config={ROOT}/experiments/quickstart.py'
  process = subprocess.run(
    [sys.executable, '-c', _STOPPED, config, '--mode=prepare', *flags],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 128 + signal.SIGTERM, process.stderr
  assert 'Traceback' not in process.stderr
  assert {p.name for p in tmp_path.iterdir()} <= {'corpus', 'runs'}


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(
  corpus, tmp_path
):
  (tmp_path / 'empty').mkdir()
  prepare.prepare(settings(corpus, tmp_path / 'empty'))
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'mine').write_text('precious')
  with pytest.raises(errors.UserError, match=r'data\.directory=.*not empty'):
    prepare.prepare(settings(corpus, tmp_path / 'full'))
  assert (tmp_path / 'full' / 'mine').read_text() == 'precious'


@pytest.mark.parametrize('content', ['', '{', '[]', '{}'])
def test_a_damaged_manifest_is_named(corpus, tmp_path, content):
  prepare.prepare(settings(corpus, tmp_path / 'p'))
  (tmp_path / 'p' / 'manifest.json').write_text(content)
  with pytest.raises(errors.UserError, match=r'manifest\.json is damaged'):
    prepare.prepare(settings(corpus, tmp_path / 'p'))


@pytest.mark.parametrize(
  ('texts', 'expected'),
  [
    ([], r'data\.path=.* holds no file'),
    (['', ' \n\n'], r'holds no text .*\(dropped: 2 empty\)'),
    (['short'], r'1 document.* of 5 bytes .* give more$'),
    (['a', 'b'], r'2 document.* of 2 bytes .* give more$'),
    (['a', 'a', 'a'], r'1 document.* of 1 bytes'),
    ([sentences(0, 400)], r'1 document.*--config\.data\.document_bytes=1024$'),
  ],
)
def test_too_little_text_is_reported(tmp_path, texts, expected):
  corpus = write_texts(tmp_path / 'c', texts)
  with pytest.raises(errors.UserError, match=expected) as caught:
    prepare.prepare(settings(corpus, tmp_path / 'p'))
  assert '\n' not in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ['c']


@pytest.mark.parametrize('fraction', [0.2, 0.4])
@pytest.mark.parametrize('count', [3, 4, 5])
def test_something_is_left_to_train_on(tmp_path, count, fraction):
  corpus = write_texts(tmp_path / 'c', TEXTS[:count])
  prepared = prepare.prepare(
    settings(corpus, tmp_path / 'p', held_out_fraction=fraction)
  )
  assert min(prepared.manifest['documents'].values()) >= 1


def mixed(tmp_path, *corpora, weights=(1.0, 3.0), **fields):
  """Prepares a mixture of folders of texts, under their default name."""
  entries = []
  for name, texts, weight in zip('ab', corpora, weights, strict=True):
    folder = write_texts(tmp_path / name, texts)
    entries.append((str(folder), weight))
  return prepare.prepare(settings('', '', sources=entries, **fields))


def test_a_mixture_is_prepared_from_all_sources(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'notes.pdf').write_bytes(b'%PDF')
  a = [f'{i} of a: {sentences(i, 5)}' for i in range(10)]
  b = [f'{i} of b: {sentences(i, 5)}' for i in range(5)]
  prepared = mixed(tmp_path, a, b)
  expected = f'runs/data/mixture-{prepared.hash}'
  assert str(prepared.directory) == expected
  sizes = {'train': (6, 3), 'validation': (2, 1), 'test': (2, 1)}
  for split, (of_a, of_b) in sizes.items():
    texts = texts_of(prepared, split)
    number = np.load(prepared.directory / _folder(split) / 'sources.npy')
    assert [' of b: ' in text for text in texts] == number.astype(bool).tolist()
    assert (number == 0).sum() == of_a
    assert (number == 1).sum() == of_b
  ignored = prepared.manifest['sources'][str(tmp_path / 'b')]['ignored']
  assert ignored == {'files': 1, 'examples': ['notes.pdf']}
  assert 'not read: 1 files of no known format (notes.pdf)' in (
    prepare.describe(prepared)
  )
  # Weights are of the order in which a run reads it, not of what is prepared.
  other = [(str(tmp_path / name), 1.0) for name in 'ab']
  data = settings('', '', sources=other)
  assert prepare.prepare(data).hash == prepared.hash


def _folder(split):
  return split if split == 'train' else f'held_out/{split}'


def test_too_little_text_in_a_mixture_names_the_source(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  texts = [sentences(seed, 5) for seed in range(5)]
  with pytest.raises(
    errors.UserError, match=r"data\.sources: '.*b': 2 document"
  ):
    mixed(tmp_path, texts, ['one', 'two'])
  for path in (tmp_path / 'b').iterdir():
    path.unlink()
  with pytest.raises(
    errors.UserError, match=r"data\.sources: '.*b' .*\(dropped: 3 duplicate\)"
  ):
    mixed(tmp_path, texts, texts[:3])


def assigned(texts, fixed, near_duplicates):
  """`splits.assign` of texts with the splits that their source fixes."""
  source = sources.Source(
    'some',
    (),
    lambda: (
      sources.Document(str(number), text, split)
      for number, (text, split) in enumerate(zip(texts, fixed, strict=True))
    ),
  )
  rules = collect.Settings(
    ((),), None, (('scrub', False),), near_duplicates > 0
  )
  counts = tally.Tally(['some'])
  data = settings('', '', near_duplicates=near_duplicates)
  with tempfile.TemporaryDirectory() as folder, workers.Pool(0) as pool:
    folder = pathlib.Path(folder)
    found = collect.collect(
      [source], rules, folder, pool, counts, lambda size: None
    )
    split_D = splits.assign(found, data, [source], folder, counts)
  names = (*prepare.SPLITS, 'near duplicate', 'duplicate', 'free')
  return [names[code] for code in split_D], counts.as_dict()['some']


@pytest.mark.parametrize('near', [False, True])
def test_of_duplicates_in_fixed_splits_the_held_out_one_is_kept(near):
  texts = [sentences(seed, 40) for seed in range(3)]
  again = [text.replace('the', 'that', 1) if near else text for text in texts]
  assert not near or all(a != b for a, b in zip(texts, again, strict=True))
  found, counts = assigned(
    [*texts, *again],
    ['train', 'train', 'validation', 'validation', 'test', 'test'],
    0.8,
  )
  reason = 'near duplicate' if near else 'duplicate'
  assert found == [reason] * 3 + ['validation', 'test', 'test']
  assert counts['dropped'][reason]['documents'] == 3
  assert counts['kept']['documents'] == 3


def test_no_text_is_near_to_one_in_another_split():
  texts = []
  for seed in range(12):
    text = sentences(seed, 40)
    texts += [text, text.replace('the', 'that', 1), text.replace('a', 'o', 2)]
  found, _ = assigned(texts, [None] * len(texts), 0.8)
  for first in range(0, len(texts), 3):
    group = found[first : first + 3]
    assert sum(name in prepare.SPLITS for name in group) == 1
  assert set(prepare.SPLITS) < set(found)


def test_the_advised_document_bytes_work(tmp_path):
  corpus = write_texts(tmp_path / 'c', [sentences(0, 400)])
  prepared = prepare.prepare(
    settings(corpus, tmp_path / 'p', document_bytes=1024)
  )
  assert all(prepared.manifest['documents'].values())


def test_a_file_in_another_encoding_is_named_with_the_byte(tmp_path):
  corpus = write_texts(tmp_path / 'c', TEXTS)
  (corpus / 'zh.txt').write_bytes(b'ok\n' + '中文'.encode('gb18030'))
  with pytest.raises(
    errors.UserError, match=r'zh\.txt:2 is not UTF-8 at byte 3; .*iconv'
  ):
    prepare.prepare(settings(corpus, tmp_path / 'p'))
  assert [p.name for p in tmp_path.iterdir()] == ['c']


def test_a_saved_tokenizer_must_have_the_asked_size(corpus, tmp_path):
  saved = tokenizer_lib.train('char', 600, TEXTS)
  saved.save(tmp_path / 't')
  data = settings(
    corpus, tmp_path / 'p', tokenizer=str(tmp_path / 't'), vocab_size=600
  )
  assert prepare.prepare(data).tokenizer() == saved
  data = settings(
    corpus, tmp_path / 'q', tokenizer=str(tmp_path / 't'), vocab_size=601
  )
  with pytest.raises(errors.UserError, match=r'data\.vocab_size=601 .* 600'):
    prepare.prepare(data)


def test_a_full_disk_in_earnest(corpus, tmp_path):
  small = tmp_path / 'small'
  small.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(small)]
  try:
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
  except OSError:
    mounted = False
  if not mounted:
    pytest.skip('mounting a small tmpfs needs root')
  try:
    write_texts(corpus, [sentences(9, 2000)], ['big.txt'])
    with pytest.raises((OSError, RuntimeError)) as caught:
      prepare.prepare(settings(corpus, small / 'p'))
    assert errors.is_disk_full(caught.value)
    assert list(small.iterdir()) == []
  finally:
    subprocess.run(['umount', str(small)], check=True)


def test_documents_are_not_held_in_memory(tmp_path):
  script = """
import resource
import ml_collections
from lm.data import prepare
import sys
fields = eval(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare.prepare(ml_collections.ConfigDict(fields))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  text = sentences(0, 4000)
  grown = []
  for count in (12, 48):
    texts = [f'{i}{text}' for i in range(count)]
    corpus = write_texts(tmp_path / f'c{count}', texts)
    data = settings(corpus, tmp_path / f'p{count}', held_out_fraction=0.05)
    process = subprocess.run(
      [sys.executable, '-c', script, repr(data.to_dict())],
      cwd=ROOT,
      capture_output=True,
      check=True,
      text=True,
    )
    grown.append(int(process.stdout) * 1024)
  assert grown[1] - grown[0] < 20 * len(text), grown


# Suffix windows.


def test_windows_are_cut_at_white_space_that_the_suffix_keeps():
  text = ('word ' * 400).strip()
  first, *_ = windows.cut([{'name': 'd', 'text': text}])
  # 1,024 bytes; the blank nearest to byte 512 is at 5 x 102 + 4 = 514.
  assert first['start'] == 0
  assert first['context'] == ('word ' * 103)[:-1]
  assert first['scored'].startswith(' word')
  assert len((first['context'] + first['scored']).encode()) == 1024


@pytest.mark.parametrize(('before', 'after'), [(2, 30), (30, 2)])
def test_windows_are_cut_at_the_nearest_white_space(before, after):
  letters = ['a'] * 1024
  letters[512 - before] = letters[512 + after] = ' '
  [window] = windows.cut([{'name': 'd', 'text': ''.join(letters)}])
  nearest = 512 - before if before < after else 512 + after
  assert len(window['context']) == nearest


@pytest.mark.parametrize(
  'text',
  [
    sentences(3, 300),
    '我们即将以丰收的喜悦送走牛年，以昂扬的斗志迎来虎年。' * 60,
    'a' * 5000,
    '👩‍👩‍👧 ' * 500,
  ],
)
def test_windows_are_parts_of_a_document(text):
  data = text.encode()
  end = 0
  cut = windows.cut([{'name': 'd', 'text': text}])
  assert cut
  for window in cut:
    assert set(window) == {'document', 'start', 'context', 'scored'}
    whole = (window['context'] + window['scored']).encode()
    assert 1021 <= len(whole) <= 1024 + 3
    assert window['start'] >= end
    end = window['start'] + len(whole)
    assert data[window['start'] : end] == whole
    assert abs(len(window['context'].encode()) - 512) <= 64 + 2
    assert '\ufffd' not in window['context'] + window['scored']
    near = window['context'][-16:] + window['scored'][:16]
    if any(c.isspace() for c in near):
      assert window['scored'][0].isspace()
      assert not window['context'][-1].isspace()


def test_windows_are_spread_and_never_reach_a_documents_end():
  documents = [
    {'name': 'short', 'text': 'a' * 1023},
    {'name': 'exact', 'text': 'b' * 1024},
    {'name': 'long', 'text': 'c' * 10_000},
  ]
  assert {w['document'] for w in windows.cut(documents)} == {'exact', 'long'}
  assert len(windows.cut(documents)) == 10
  few = windows.cut(documents, count=3)
  assert len(few) == 3
  assert few[0]['document'] == 'exact'
  assert few[-1]['start'] >= 5 * 1024


def test_stored_windows_are_of_test_documents(tmp_path):
  corpus = write_texts(tmp_path / 'c', [sentences(i, 60) for i in range(10)])
  prepared = prepare.prepare(settings(corpus, tmp_path / 'p'))
  path = prepared.directory / 'held_out' / 'windows.jsonl'
  stored = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  texts = texts_of(prepared, 'test')
  assert stored
  for window in stored:
    whole = window['context'] + window['scored']
    assert any(whole in text for text in texts)
  recorded = prepared.manifest['windows']
  assert recorded['count'] == len(stored)
  assert recorded['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
