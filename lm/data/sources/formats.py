"""Readers of single files: text, JSON lines, HTML, and those of `tables`.

A reader yields documents in the order of the file and holds one at a time, or
one batch of rows. A mistake in a file, a line or a row ends the preparation
with a message of one line, or is skipped and counted, as `data.errors` says.
"""

import codecs
import dataclasses
import functools
import json
import pathlib
import re

from resiliparse.parse import encoding as html_encoding

from lm import errors
from lm.data.sources import documents, streams, tables
from lm.data.text import markup


def format_of(path: pathlib.Path) -> str | None:
  """The suffix in FORMATS by which a file is read; None if there is none."""
  stem = path.stem if streams.compression(path) else path.name
  suffix = pathlib.PurePath(stem).suffix.lower()
  return suffix if suffix in FORMATS else None


def read(
  path: pathlib.Path, name: str, options: documents.Options
) -> documents.Results:
  """Yields the documents of a file of a known format, see `format_of`.

  A text or a page is named `name`, a document in a line or row `name:NUMBER`
  (for a row of a table, its first line, as in an editor). Texts of more than
  `options.document_bytes` are cut, if possible at line ends, into NAME#0,
  NAME#1, ...

  Raises:
    UserError: something cannot be read, with `options.errors` 'stop'; the
      message names the file and the line.
  """
  file = documents.File(path, name, options)
  suffix = format_of(path)
  if options.target_column is not None and suffix not in PAIR_FORMATS:
    detail = f'{path} holds no pairs, but data.target_column asks for them'
    mend = f'give {", ".join(PAIR_FORMATS)}, leave data.target_column out'
    yield file.bad(name, 'no pairs', detail, mend)
    return
  try:
    found = FORMATS[suffix](file)
    first = next(found, None)
    yield documents.Skipped(name, 'empty') if first is None else first
    yield from found
  except streams.StreamError as error:
    mend = 'mend it or leave it out'
    yield file.bad(name, error.reason, f'{path} {error}', mend)
  except OSError as error:
    if errors.is_disk_full(error):
      raise
    detail = f'{path} cannot be read ({error.strerror})'
    mend = 'make it readable or leave it out'
    yield file.bad(name, 'unreadable', detail, mend)


def _plain(file: documents.File) -> documents.Results:
  options = file.options
  with streams.open_utf8(file.path, options.encoding) as stream:
    head = stream.read(len(codecs.BOM_UTF8))
    offset, line = 0, 1
    if head == codecs.BOM_UTF8:
      offset, head = len(head), b''
    parts = documents.cut(stream, options.document_bytes, head)
    for name, part in documents.number(file.name, parts):
      try:
        text = part.decode()
      except UnicodeDecodeError as error:
        at = line + part.count(b'\n', 0, error.start)
        yield file.undecodable(name, at, len(part), offset + error.start)
      else:
        yield documents.document(name, text)
      offset += len(part)
      line += part.count(b'\n')


def _json_lines(file: documents.File) -> documents.Results:
  offset = number = 0
  with streams.open_utf8(file.path, file.options.encoding) as stream:
    while line := stream.readline(documents.RECORD_BYTES):
      number += 1
      name, size = f'{file.name}:{number}', len(line)
      if size == documents.RECORD_BYTES and line[-1:] != b'\n':
        yield file.too_long(name, number, 'a line')
        while line and line[-1:] != b'\n':
          line = stream.readline(documents.RECORD_BYTES)
          size += len(line)
      elif not line.isspace():
        yield from _json_line(file, name, number, offset, line)
      offset += size


def _json_line(
  file: documents.File, name: str, number: int, offset: int, line: bytes
) -> documents.Results:
  columns = file.options.columns
  reason = detail = missing = None
  try:
    record = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
    values = {
      side: record.get(column, 0) if isinstance(record, dict) else 0
      for side, column in columns.items()
    }
    for side, value in values.items():
      if value is not None and not isinstance(value, str):
        missing = missing or side
    if missing:
      reason = f'no {missing} field'
      detail = f'has no field "{columns[missing]}" that is a string'
      if isinstance(record, dict):
        detail += f' (its fields: {tables.listed(record)})'
    else:
      yield from file.record(name, [value or '' for value in values.values()])
  except UnicodeDecodeError as error:
    yield file.undecodable(name, number, len(line), offset + error.start)
  except UnicodeEncodeError as error:
    reason = 'half a surrogate pair'
    column = next(columns[s] for s in values if values[s] == error.object)
    detail = (
      f'has half of a surrogate pair at character {error.start} of "{column}", '
      f'which is no Unicode'
    )
  except (ValueError, RecursionError) as error:
    reason, detail = 'not JSON', f'is not JSON ({error})'
  if reason:
    example = dict.fromkeys(columns.values(), '...')
    example = json.dumps(example, ensure_ascii=False)
    mend = f'give one object a line, like {example}'
    if missing:
      mend += f', or another data.{missing}_column'
    detail = f'{file.path}:{number} {detail}'
    yield file.bad(name, reason, detail, mend, len(line))


def _html(file: documents.File) -> documents.Results:
  with streams.open_bytes(file.path) as stream:
    data = stream.read(documents.RECORD_BYTES + 1)
  if len(data) > documents.RECORD_BYTES:
    yield file.too_long(file.name, 1, 'a page')
    return
  encoding = page_encoding(data, file.options.encoding)
  try:
    page = data.decode(encoding)
  except UnicodeDecodeError as error:
    kind = 'UTF-8' if streams.is_utf8(encoding) else encoding
    line = data.count(b'\n', 0, error.start) + 1
    detail = f'{file.path}:{line} is not {kind} at byte {error.start}'
    mend = (
      'declare the encoding that it has in <meta charset>, or give it as '
      'data.encoding where the page declares none'
    )
    yield file.bad(file.name, f'not {kind}', detail, mend, len(data))
    return
  for result in file.whole(file.name, markup.html_to_text(page)):
    if isinstance(result, documents.Document):
      result = dataclasses.replace(result, is_page=True)
    yield result


def page_encoding(data: bytes, default: str) -> str:
  """The codec of an HTML page's bytes.

  A byte order mark determines it. Without one, bytes beyond ASCII that form
  UTF-8 are UTF-8: many pages declare a wrong encoding, and bytes of another
  encoding hardly ever form UTF-8. Otherwise it is the encoding that the page
  declares in its first 1,024 bytes, by the labels of the WHATWG encoding
  standard (section 4.2), or `default` if it declares none.
  """
  for mark, encoding in _BYTE_ORDER_MARKS.items():
    if data.startswith(mark):
      return encoding
  if not data.isascii() and _is_utf8(data):
    return 'utf-8'
  declared = _DECLARED.search(data[:1024])
  encoding = declared and html_encoding.map_encoding_to_html5(
    declared[1].decode(), fallback_utf8=False
  )
  return _SUPERSETS.get(encoding, encoding) or default


_BYTE_ORDER_MARKS = {
  codecs.BOM_UTF8: 'utf-8-sig',
  codecs.BOM_UTF16_LE: 'utf-16',
  codecs.BOM_UTF16_BE: 'utf-16',
}
_DECLARED = re.compile(
  rb'<(?:meta\b[^>]*?\bcharset|\?xml\b[^>]*?\bencoding)\s*=\s*["\']?\s*'
  rb'([a-z0-9_:.-]+)',
  re.IGNORECASE,
)
# Pages use supersets of the codecs that Python has by these names, as the
# WHATWG's decoders do. A page that declares UTF-16 in ASCII is not UTF-16.
_SUPERSETS = {
  'gbk': 'gb18030',
  'big5': 'big5hkscs',
  'shift_jis': 'cp932',
  'euc_kr': 'cp949',
  'utf-16-le': 'utf-8',
  'utf-16-be': 'utf-8',
}


def _is_utf8(data: bytes) -> bool:
  try:
    data.decode()
  except UnicodeDecodeError:
    return False
  return True


# Suffix -> reader of the files, which can be compressed.
FORMATS = {
  '.txt': _plain,
  '.md': _plain,
  '.jsonl': _json_lines,
  '.csv': functools.partial(tables.delimited, delimiter=','),
  '.tsv': functools.partial(tables.delimited, delimiter='\t'),
  '.parquet': tables.parquet,
  '.html': _html,
  '.htm': _html,
}
# Formats whose lines or rows can be pairs.
PAIR_FORMATS = ('.jsonl', '.csv', '.tsv', '.parquet')
