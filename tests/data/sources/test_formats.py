"""Readers yield every text exactly, and report every mistake with its line."""

import csv
import errno
import gzip
import io
import json
import os
import pathlib
import tracemalloc

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lm import errors
from lm.data.sources import documents, formats, streams

TEXTS = ['first\nof two lines, "quoted"', '第二个\ttext', ' third ']
NAMES = ['.txt', '.md', '.jsonl', '.csv', '.tsv', '.parquet', '.html', '.htm']


def pack(suffix, data, parts=1):
  """Compresses data into `parts` members or frames."""
  compress = {
    '': bytes,
    '.gz': gzip.compress,
    '.zst': zstandard.ZstdCompressor().compress,
  }[suffix]
  size = -(-len(data) // parts) or 1
  return b''.join(
    compress(data[i : i + size]) for i in range(0, len(data), size)
  )


def table(rows, delimiter=',', end='\r\n', encoding='utf-8'):
  """A CSV as the standard library writes it."""
  lines = []
  writer = csv.writer(
    type('', (), {'write': lines.append}),
    delimiter=delimiter,
    lineterminator=end,
  )
  writer.writerows(rows)
  return ''.join(lines).encode(encoding)


def written(path, texts):
  """A file of the format of its name, with these texts."""
  suffix = formats.format_of(path)
  if suffix == '.jsonl':
    data = '\n'.join(json.dumps({'text': text}) for text in texts).encode()
  elif suffix in ('.csv', '.tsv'):
    rows = [('id', 'text'), *enumerate(texts)]
    data = table(rows, {'.csv': ',', '.tsv': '\t'}[suffix])
  elif suffix == '.parquet':
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({'id': [1, 2, 3], 'text': texts}), sink)
    data = sink.getvalue().to_pybytes()
  elif suffix in ('.html', '.htm'):
    data = b'<title>not this</title><p>%b<script>nor</script>' % (
      texts[1].encode()
    )
  else:
    data = texts[1].encode()
  path.write_bytes(pack(streams.compression(path), data, parts=3))
  return path


def read(path, **options):
  options = documents.Options(**options)
  return list(formats.read(path, path.name, options))


def mistake(path, **options):
  with pytest.raises(errors.UserError) as info:
    read(path, **options)
  message = str(info.value)
  assert '\n' not in message
  assert message.startswith('data.path: ')
  assert message.endswith("data.errors='skip'")
  return message


def skipped(path, **options):
  """All that is skipped, and why."""
  found = read(path, errors='skip', **options)
  return [(d.name, d.reason) for d in found if isinstance(d, documents.Skipped)]


def texts(found):
  return [d.text for d in found if isinstance(d, documents.Document)]


def names(found):
  return [d.name for d in found]


@pytest.mark.parametrize('packed', ['', '.gz', '.zst', '.ZST'])
@pytest.mark.parametrize('name', NAMES)
def test_every_format_is_read_plain_and_packed(tmp_path, name, packed):
  path = written(tmp_path / f'a.b{name}{packed}', TEXTS)
  found = read(path)
  if name in ('.jsonl', '.csv', '.tsv', '.parquet'):
    lines = {'.jsonl': [1, 2, 3], '.parquet': [1, 2, 3]}.get(name, [2, 4, 5])
    assert names(found) == [f'{path.name}:{line}' for line in lines]
    assert texts(found) == TEXTS
  else:
    expected = '第二个 text' if name in ('.html', '.htm') else TEXTS[1]
    is_page = name in ('.html', '.htm')
    assert found == [documents.Document(path.name, expected, is_page=is_page)]


def test_the_table_of_formats_is_tested():
  assert list(formats.FORMATS) == NAMES
  for name in ['a.gz', 'a.tar.gz', 'a.txt.xz', 'txt', 'a.txt.gz.zst']:
    assert formats.format_of(pathlib.Path(name)) is None


@pytest.mark.parametrize('packed', ['.gz', '.zst'])
@pytest.mark.parametrize('harm', ['head', 'short', 'tail'])
def test_a_broken_packing_is_named(tmp_path, packed, harm):
  # Incompressible, and longer than what is unpacked at a time.
  lines = [json.dumps({'text': f'{i * 7919**9:x}'}) for i in range(9000)]
  data = pack(packed, '\n'.join(lines).encode(), parts=2)
  data = {
    'head': b'no archive' + data,
    'short': data[: len(data) * 2 // 3],
    'tail': data + b'more',
  }[harm]
  path = tmp_path / f'a.jsonl{packed}'
  path.write_bytes(data)
  kind = {'.gz': 'gzip', '.zst': 'zstd'}[packed]
  message = mistake(path)
  found = read(path, errors='skip')
  assert f'{path} is broken {kind} in line {len(found)}, after ' in message
  assert [d for d in found if isinstance(d, documents.Skipped)] == found[-1:]
  assert found[-1].reason == f'broken {kind}'
  assert found[-1].detail in message
  # What came whole before it is kept.
  assert (len(found) > 1000) == (harm != 'head')
  assert texts(found) == [
    json.loads(x)['text'] for x in lines[: len(found) - 1]
  ]


def test_a_packing_of_other_content_than_its_checksum_is_named(tmp_path):
  zstd = zstandard.ZstdCompressor(write_checksum=True).compress
  for name, compress in [('a.txt.gz', gzip.compress), ('a.txt.zst', zstd)]:
    data = bytearray(compress(b'text' * 9))
    data[-5 if name == 'a.txt.gz' else -1] ^= 1  # A byte of the checksum.
    (tmp_path / name).write_bytes(data)
    assert 'is broken' in mistake(tmp_path / name)


def test_a_packing_cut_short_within_its_head_is_named(tmp_path):
  for packed in ('.gz', '.zst'):
    path = tmp_path / f'a.txt{packed}'
    path.write_bytes(pack(packed, b'text')[:3])
    assert 'is broken' in mistake(path)


def test_zstd_with_a_long_window_and_frames_to_skip(tmp_path):
  parameters = zstandard.ZstdCompressionParameters(window_log=28)
  frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
  data = frame.compress(b'text') + frame.flush()
  aside = b'\x50\x2a\x4d\x18\x02\x00\x00\x00xx'
  path = tmp_path / 'a.txt.zst'
  path.write_bytes(aside + data + aside + data)
  assert texts(read(path)) == ['texttext']


def test_memory_stays_flat(tmp_path):
  line = b'0123456789' * 100 + b'\n'
  size, limit = 40_000 * len(line), 16 << 20
  files = {'a.txt.gz': line * 40_000, 'a.txt.zst': line * 40_000}
  files['a.csv.gz'] = b'text\n' + files['a.txt.gz']
  files['b.txt.gz'] = files['a.txt.gz']
  for name, data in files.items():
    path = tmp_path / name
    path.write_bytes(pack(path.suffix, data))
    encoding = 'gb18030' if name == 'b.txt.gz' else 'utf-8'
    options = documents.Options(encoding=encoding)
    tracemalloc.start()
    try:
      found = formats.read(path, name, options)
      total = sum(len(document.text) for document in found)
      _, peak = tracemalloc.get_traced_memory()
    finally:
      tracemalloc.stop()
    assert total in (size, size - 40_000)
    assert peak < limit


def test_empty_files_are_skipped(tmp_path):
  for name in NAMES:
    for packed in ('', '.gz', '.zst'):
      path = tmp_path / f'a{name}{packed}'
      path.write_bytes(b'' if packed == '.zst' else pack(packed, b''))
      assert read(path) == [documents.Skipped(path.name, 'empty')]
  blank = tmp_path / 'b.txt'
  blank.write_text(' \n\u3000')
  assert read(blank) == [documents.Skipped('b.txt', 'empty', 5)]
  header = tmp_path / 'b.csv'
  header.write_text('id,text\n')
  assert read(header) == [documents.Skipped('b.csv', 'empty')]


def test_a_file_that_is_gone_is_named(tmp_path):
  assert 'cannot be read (No such file' in mistake(tmp_path / 'a.txt')
  assert 'cannot be read (No such file' in mistake(tmp_path / 'a.parquet')
  assert skipped(tmp_path / 'a.txt') == [('a.txt', 'unreadable')]


@pytest.mark.parametrize('name', ['a.txt', 'a.csv', 'a.parquet', 'a.html'])
def test_a_disk_that_fails_is_not_the_file_s_fault(tmp_path, monkeypatch, name):
  path = written(tmp_path / name, TEXTS)

  class Failing(io.FileIO):
    def fail(self, *_):
      raise OSError(errno.EIO, os.strerror(errno.EIO))

    read = readinto = fail

  monkeypatch.setattr('builtins.open', lambda path, mode: Failing(path))
  assert f'{path} cannot be read (Input/output error)' in mistake(path)
  assert skipped(path) == [(name, 'unreadable')]


def test_a_file_is_a_document_with_its_newlines(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'\xef\xbb\xbfone\r\ntwo\rthree\n')
  assert read(file) == [documents.Document('a.txt', 'one\r\ntwo\rthree\n')]


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
  (tmp_path / 'c.txt').write_bytes(text.encode('gb18030'))
  (tmp_path / 'b.jsonl').write_text(json.dumps({'text': text}))
  (tmp_path / 'b.csv').write_bytes(table([['text'], [text]]))
  parquet.write_table(pyarrow.table({'text': [text]}), tmp_path / 'b.parquet')
  for file, name, encoding in [
    ('a.txt', 'a.txt', 'utf-8'),
    ('c.txt', 'c.txt', 'gb18030'),
    ('b.jsonl', 'b.jsonl:1', 'utf-8'),
    ('b.csv', 'b.csv:2', 'utf-8'),
    ('b.parquet', 'b.parquet:1', 'utf-8'),
  ]:
    found = read(tmp_path / file, document_bytes=limit, encoding=encoding)
    assert texts(found) == parts
    several = [f'{name}#{i}' for i in range(len(parts))]
    assert names(found) == (several if len(parts) > 1 else [name])


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
    parts = list(documents.cut(Counting(opened), 128))
  assert b''.join(parts) == file.read_bytes()
  assert max(reads) <= 129
  assert all(part.endswith(b'\n') for part in parts)


def test_a_part_is_cut_late_and_not_at_any_price():
  # (text, limit) -> parts.
  examples = [
    (b'a\nbcdef ghijk', 10, [b'a\nbcdef ', b'ghijk']),
    (b'ab cde\nf ghi', 10, [b'ab cde\n', b'f ghi']),
    (b'a bcdefghijkl', 10, [b'a ', b'bcdefghijk', b'l']),
    (b'a b\ncdefghijklm', 10, [b'a b\n', b'cdefghijkl', b'm']),
  ]
  for data, limit, parts in examples:
    assert list(documents.cut(io.BytesIO(data), limit)) == parts


def test_jsonl_holds_a_document_a_line(tmp_path):
  file = tmp_path / 'a.jsonl'
  lines = ['{"text": "一\\n", "id": 1}', '{"text": " "}', '{"text": ""}']
  lines += ['', ' ', '{"text": null}', '{"text": "b"}', '']
  file.write_text('\ufeff' + '\n'.join(lines), encoding='utf-8')
  assert read(file) == [
    documents.Document('a.jsonl:1', '一\n'),
    documents.Skipped('a.jsonl:2', 'empty', 1),
    documents.Skipped('a.jsonl:3', 'empty'),
    documents.Skipped('a.jsonl:6', 'empty'),
    documents.Document('a.jsonl:7', 'b'),
  ]


BAD_LINES = [
  (b'{"text": "a"', 'is not JSON', 'not JSON'),
  (b'text', 'is not JSON', 'not JSON'),
  (b'[' * 100_000, 'is not JSON', 'not JSON'),
  (b'["a"]', 'no field "text"', 'no text field'),
  (b'{"body": 1, "id": 2}', "(its fields: 'body', 'id')", 'no text field'),
  (b'{"text": 1}', 'no field "text"', 'no text field'),
  (b'{"text": "a\\ud800"}', 'surrogate', 'half a surrogate pair'),
  (b'{"text": "\xd6\xd0"}', 'not UTF-8 at byte 27', 'not UTF-8'),
]


@pytest.mark.parametrize(('line', 'said', 'reason'), BAD_LINES)
def test_a_bad_json_line_is_named_or_skipped(tmp_path, line, said, reason):
  file = tmp_path / 'a.jsonl'
  file.write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
  message = mistake(file)
  assert f'{file}:2' in message
  assert said in message
  found = read(file, errors='skip')
  assert texts(found) == ['fine', 'fine']
  (bad,) = found[1:-1]
  assert (bad.name, bad.reason) == ('a.jsonl:2', reason)
  assert bad.size == len(line) + 1
  assert bad.detail in message


@pytest.mark.parametrize('limit', [4, 8, 1 << 20])
def test_what_is_not_utf8_is_named_with_its_byte_and_line(tmp_path, limit):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'\xef\xbb\xbf0123456\n' + '中'.encode('gb18030'))
  message = mistake(file, document_bytes=limit)
  assert f'{file}:2 is not UTF-8 at byte 11' in message
  assert 'iconv -f GB18030 -t UTF-8' in message
  assert "data.encoding='gb18030'" in message


def test_parts_that_are_not_utf8_are_skipped_alone(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes(b'good one\nbad \xff\nx good\n')
  found = read(file, document_bytes=9, errors='skip')
  assert found == [
    documents.Document('a.txt#0', 'good one\n'),
    documents.Skipped(
      'a.txt#1', 'not UTF-8', 6, f'{file}:2 is not UTF-8 at byte 13'
    ),
    documents.Document('a.txt#2', 'x good\n'),
  ]


def test_the_text_column_is_named_by_the_config(tmp_path):
  rows = {'text': ['no', 'no'], '正文': ['a', 'b']}
  (tmp_path / 'a.csv').write_bytes(
    table([list(rows), ['no', 'a'], ['no', 'b']])
  )
  parquet.write_table(pyarrow.table(rows), tmp_path / 'a.parquet')
  lines = [json.dumps({'text': 'no', '正文': text}) for text in 'ab']
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  for name in ('a.csv', 'a.parquet', 'a.jsonl'):
    assert texts(read(tmp_path / name, text_column='正文')) == ['a', 'b']


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_rows_of_a_table_are_named_by_their_first_line(tmp_path, end):
  file = tmp_path / 'a.csv'
  file.write_bytes(
    b'\xef\xbb\xbf'
    + table([['text', 'a,\nb'], ['one\r\n"1"', 2], [' ', 2]], end=end)
    + end.encode() * 2
    + b'last,"line\n"'
  )
  assert read(file) == [
    documents.Document('a.csv:3', 'one\r\n"1"'),
    documents.Skipped('a.csv:5', 'empty', 1),
    documents.Document('a.csv:8', 'last'),
  ]


BAD_ROWS = [
  ('short', '3 has 1 field(s) where the header has 2', 'ragged row'),
  ('a,b,c', '3 has 3 field(s) where the header has 2', 'ragged row'),
  ('a,"b"c', "3 begins a row with broken quotes or line ends (',' expec", ''),
  ('a,b\rc,d', '3 begins a row with broken quotes or line ends (new-line', ''),
  ('"a\n\udcff",b', '4 is not UTF-8', 'not UTF-8'),
  ('a,"b', '3 begins a row with a quote that nothing closes', 'unclosed quote'),
]


@pytest.mark.parametrize(('row', 'said', 'reason'), BAD_ROWS)
def test_a_bad_row_is_named_or_skipped(tmp_path, row, said, reason):
  file = tmp_path / 'a.csv'
  after = '' if reason == 'unclosed quote' else '\r\nfine,x\r\n'
  data = f'text,id\nfine,y\n{row}{after}'.encode(errors='surrogateescape')
  file.write_bytes(data)
  message = mistake(file)
  assert f'{file}:{said}' in message
  found = read(file, errors='skip')
  assert texts(found) == ['fine'] * (1 + bool(after))
  (bad,) = (d for d in found if isinstance(d, documents.Skipped))
  assert (bad.name, bad.reason) == ('a.csv:3', reason or 'broken quotes')
  assert bad.detail in message


BAD_HEADERS = [
  (
    b'id,Text,\xe4\xb9\xa6\n',
    "1 has no column 'text' (its columns: 'id', 'Text', '书')",
    'no text column',
  ),
  (b'\n\nid\n', "3 has no column 'text' (its columns: 'id')", 'no text column'),
  (b'text,id,text\n', "1 has 2 columns 'text'", 'duplicate column'),
  (b'\xd5\xfd\xce\xc4,id\n', '1 is not UTF-8', 'not UTF-8'),
  (b'"text\n', '1 begins a row with a quote that nothing', 'unclosed quote'),
]


@pytest.mark.parametrize(('header', 'said', 'reason'), BAD_HEADERS)
def test_a_bad_header_is_named_or_its_file_skipped(
  tmp_path, header, said, reason
):
  file = tmp_path / 'a.csv'
  file.write_bytes(header + b'1,2,3\n')
  assert f'{file}:{said}' in mistake(file)
  assert skipped(file) == [('a.csv', reason)]
  assert not texts(read(file, errors='skip'))


def test_the_line_of_a_field_that_is_not_utf8(tmp_path):
  file = tmp_path / 'a.csv'
  file.write_bytes(b'id,text,x\n"1\n2","a\nb\xff\nc","\n"\n')
  assert f'{file}:4 is not UTF-8' in mistake(file)


def test_bytes_beside_the_text_need_not_be_utf8(tmp_path):
  file = tmp_path / 'a.csv'
  file.write_bytes(b'text,\xff\na,\xff\n')
  assert texts(read(file)) == ['a']


def test_the_header_of_a_joined_table_is_no_document(tmp_path):
  file = tmp_path / 'a.tsv'
  file.write_text('id\ttext\n1\ta\nid\ttext\n1\tb\n')
  assert read(file) == [
    documents.Document('a.tsv:2', 'a'),
    documents.Skipped('a.tsv:3', 'repeated header'),
    documents.Document('a.tsv:4', 'b'),
  ]


def test_long_fields_are_read_and_endless_ones_are_not(tmp_path, monkeypatch):
  file = tmp_path / 'a.csv'
  file.write_bytes(table([['text'], ['x' * 200_000]]))
  assert texts(read(file)) == ['x' * 200_000]
  monkeypatch.setattr(documents, 'RECORD_BYTES', 20)
  file.write_bytes(b'text,id\n"' + b'x\n' * 11 + b'fine,2\n')
  assert f'{file}:2 begins a field (is a quote left open?)' in mistake(file)
  assert texts(read(file, errors='skip'))[-1:] == ['fine']
  file.write_bytes(b'text,id\n' + b'x' * 21 + b'\nlost,1\n')
  assert skipped(file) == [('a.csv', 'too long')]
  lines = tmp_path / 'a.jsonl'
  lines.write_text('{"text": "1"}\n{"text": "' + 'x' * 50 + '"}\n{"text": "3"}')
  assert f'{lines}:2 begins a line of over 20 bytes' in mistake(lines)
  assert skipped(lines) == [('a.jsonl:2', 'too long')]
  assert texts(read(lines, errors='skip')) == ['1', '3']
  page = tmp_path / 'a.html'
  page.write_text('<p>' * 7)
  assert skipped(page) == [('a.html', 'too long')]


@pytest.mark.parametrize('kind', ['string', 'large_string', 'string_view'])
def test_parquet_strings_of_all_kinds(tmp_path, kind):
  column = pyarrow.array(['一', None, ''], getattr(pyarrow, kind)())
  for array in (column, pyarrow.array(['一', None, '']).dictionary_encode()):
    file = tmp_path / 'a.parquet'
    parquet.write_table(pyarrow.table({'text': array}), file)
    assert read(file) == [
      documents.Document('a.parquet:1', '一'),
      documents.Skipped('a.parquet:2', 'empty'),
      documents.Skipped('a.parquet:3', 'empty'),
    ]


def test_rows_of_parquet_are_read_in_order_across_groups(tmp_path):
  file = tmp_path / 'a.parquet'
  column = [f'row {i}' for i in range(5000)]
  parquet.write_table(pyarrow.table({'text': column}), file, row_group_size=700)
  found = read(file)
  assert texts(found) == column
  assert names(found) == [f'a.parquet:{i}' for i in range(1, 5001)]


def test_a_bad_parquet_is_named_or_skipped(tmp_path):
  file = tmp_path / 'a.parquet'
  file.write_text('id,text\n1,a\n')
  assert f'{file} is broken (' in mistake(file)
  assert skipped(file) == [('a.parquet', 'broken Parquet')]
  parquet.write_table(pyarrow.table({'text': ['abc' * 99]}), file)
  data = bytearray(file.read_bytes())
  data[60:64] = b'\xff' * 4
  file.write_bytes(data)
  assert skipped(file) == [('a.parquet', 'broken Parquet')]
  parquet.write_table(pyarrow.table({'text': [1], 'body': ['a']}), file)
  assert f"{file} has a column 'text' of int64" in mistake(file)
  assert skipped(file) == [('a.parquet', 'no text column')]
  assert f"{file} has no column 'x' (its columns: 'text', 'body')" in mistake(
    file, text_column='x'
  )
  strings = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, pyarrow.array([b'fine', b'\xff']).buffers()
  )
  parquet.write_table(pyarrow.table({'text': strings}), file)
  assert f'{file}:2 is not UTF-8 at byte 0 of a row' in mistake(file)
  assert texts(read(file, errors='skip')) == ['fine']
  assert skipped(file) == [('a.parquet:2', 'not UTF-8')]


CHINESE = '语言模型，2024年。'
PAGES = [
  ('<meta charset="gb2312">', 'gb18030'),
  ("<META http-equiv=x content='text/html; charset=GBK'>", 'gb18030'),
  ('<?xml version="1.0" encoding="gb18030"?>', 'gb18030'),
  ('<meta charset=big5>', 'utf-8'),  # Not true.
  ('<meta charset=utf-16>', 'utf-8'),
  ('', 'utf-8'),
  ('', 'utf-8-sig'),
  ('', 'utf-16'),
]


@pytest.mark.parametrize(('head', 'encoding'), PAGES)
def test_pages_are_read_in_the_encoding_they_have(tmp_path, head, encoding):
  file = tmp_path / 'a.html'
  page = f'{head}<body><h1>{CHINESE}</h1>&copy;</body>'
  file.write_bytes(page.encode(encoding))
  assert texts(read(file)) == [f'{CHINESE}\n\n©']


def test_pages_of_other_scripts_and_without_a_declaration(tmp_path):
  file = tmp_path / 'a.html'
  for label, encoding, text in [
    ('big5', 'big5hkscs', '啲語言模型'),  # The first is of Hong Kong.
    ('Shift_JIS', 'cp932', '①日本語'),
    ('iso-2022-jp', 'iso2022_jp', '日本語'),
    ('euc-kr', 'cp949', '한국어'),
    ('iso-8859-1', 'cp1252', '“café” €'),
    ('koi8-r', 'koi8-r', 'язык'),
  ]:
    file.write_bytes(f'<meta charset={label}><p>{text}'.encode(encoding))
    assert texts(read(file)) == [text]
  file.write_bytes(b'<meta charset=utf-16><p>so it is not')
  assert texts(read(file)) == ['so it is not']
  file.write_bytes(f'<p>{CHINESE}'.encode('gb18030'))
  assert f'{file}:1 is not UTF-8 at byte 3' in mistake(file)
  assert texts(read(file, encoding='gb18030')) == [CHINESE]


def test_a_page_that_cannot_be_decoded_is_named_or_skipped(tmp_path):
  file = tmp_path / 'a.html'
  file.write_bytes(b'<meta charset=gbk>\n<p>\xd6\xd0\xff\xff')
  assert f'{file}:2 is not gb18030 at byte 24' in mistake(file)
  (bad,) = read(file, errors='skip')
  assert (bad.name, bad.reason, bad.size) == ('a.html', 'not gb18030', 26)


@pytest.mark.parametrize('encoding', ['gb18030', 'utf-16', 'UTF8', 'big5'])
def test_files_in_another_encoding(tmp_path, encoding):
  # Characters lie across the bytes that are decoded at a time.
  text = '\n'.join('x' + '語言模型' * 20 for _ in range(1000))
  (tmp_path / 'a.txt').write_bytes(text.encode(encoding))
  (tmp_path / 'a.csv').write_bytes(table([['text'], [text]], encoding=encoding))
  line = json.dumps({'text': text}, ensure_ascii=False)
  (tmp_path / 'a.jsonl.gz').write_bytes(pack('.gz', line.encode(encoding)))
  for name in ('a.txt', 'a.csv', 'a.jsonl.gz'):
    assert texts(read(tmp_path / name, encoding=encoding)) == [text]


def test_a_file_that_ends_within_a_character_is_named(tmp_path):
  file = tmp_path / 'a.txt'
  file.write_bytes('中文\n中文'.encode('gb18030')[:-1])
  assert f'{file}:2 is not gb18030' in mistake(file, encoding='gb18030')


def test_what_is_not_in_the_encoding_is_named_or_skipped(tmp_path):
  good, bad = '中文'.encode('gb18030'), b'\xd6\xd0\xff\xff'
  (tmp_path / 'a.txt').write_bytes(good + b'\n' + bad)
  (tmp_path / 'a.csv').write_bytes(b'text\n' + good + b'\n' + bad + b'\nx\n')
  line = b'{"text": "%b"}\n'
  (tmp_path / 'a.jsonl').write_bytes(line % good + line % bad + line % b'x')
  for name, at, where in [
    ('a.txt', 2, 'a.txt'),
    ('a.csv', 3, 'a.csv:3'),
    ('a.jsonl', 2, 'a.jsonl:2'),
  ]:
    file = tmp_path / name
    message = mistake(file, encoding='gb18030')
    assert f'{file}:{at} is not gb18030;' in message
    assert skipped(file, encoding='gb18030') == [(where, 'not gb18030')]
    found = texts(read(file, encoding='gb18030', errors='skip'))
    assert found == ([] if name == 'a.txt' else ['中文', 'x'])
  file.write_bytes(line % good)
  assert 'is not utf-16 (UTF-16 stream does not start with BOM)' in mistake(
    file, encoding='utf-16'
  )


@pytest.mark.parametrize(
  'encoding', ['spam', '', 'hex', 'rot13', 'idna', 'a\0']
)
def test_an_unknown_encoding_is_refused(encoding):
  with pytest.raises(errors.UserError, match=r'data\.encoding=.*gb18030'):
    streams.check_encoding(encoding)
