"""Readers of tables: .csv, .tsv and .parquet.

One column holds the text; in a table of pairs, one holds the sources and one
the targets.
"""

import contextlib
import csv
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from lm import errors
from lm.data.sources import documents, streams

_BATCH_BYTES = 1 << 22
# Limits memory when the file stores a value once for many rows.
_BATCH_ROWS = 1 << 10


def delimited(file: documents.File, delimiter: str) -> documents.Results:
  """Rows below a header, quoted as in RFC 4180 (sections 2.5 to 2.7)."""
  # A limit of the whole process; the default is 128 KiB.
  csv.field_size_limit(documents.RECORD_BYTES)
  with (
    streams.open_utf8(file.path, file.options.encoding) as stream,
    # Invalid UTF-8 becomes lone surrogates, which encoding then rejects.
    io.TextIOWrapper(stream, 'utf-8-sig', 'surrogateescape', '\n') as text,
  ):
    rows = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    header = indices = None
    while True:
      line = rows.line_num + 1
      name = file.name if header is None else f'{file.name}:{line}'
      try:
        row = next(rows)
      except StopIteration:
        return
      except csv.Error as error:
        yield _misquoted(file, name, line, error)
        if header is None:
          return
        continue
      if not row:  # A blank line.
        continue
      if header is None:
        header, indices = row, _columns(file, row, line)
        if isinstance(indices, documents.Skipped):
          yield indices
          return
      elif len(row) != len(header):
        yield _ragged(file, name, line, row, header)
      elif row == header:  # The header of an appended table.
        yield documents.Skipped(name, 'repeated header')
      else:
        try:
          yield from file.record(name, [row[index] for index in indices])
        except UnicodeEncodeError as error:
          index = next(i for i in indices if row[i] == error.object)
          yield _undecodable(file, name, line, row, index, error.start)


def _lines(text: TextIO) -> Iterator[str]:
  number = 0
  while line := text.readline(documents.RECORD_BYTES):
    number += 1
    if len(line) == documents.RECORD_BYTES and line[-1] != '\n':
      said = f'has a line {number} of over {documents.RECORD_BYTES} characters'
      raise streams.StreamError('too long', said)
    yield line


def _misquoted(
  file: documents.File, name: str, line: int, error: csv.Error
) -> documents.Skipped:
  where, said = f'{file.path}:{line}', errors.one_line(error)
  if 'field limit' in said:
    return file.too_long(name, line, 'a field (is a quote left open?)')
  if 'unexpected end' in said:
    detail = f'{where} begins a row with a quote that nothing closes'
    return file.bad(name, 'unclosed quote', detail, 'close it')
  detail = f'{where} begins a row with broken quotes or line ends ({said})'
  mend = 'double the quotes within a field, and end lines with a line feed'
  return file.bad(name, 'broken quotes', detail, mend)


def _columns(
  file: documents.File, header: list[str], line: int
) -> list[int] | documents.Skipped:
  """The indices of the columns to read."""
  columns = file.options.columns
  for side, column in columns.items():
    if header.count(column) == 1:
      continue
    try:
      ''.join(header).encode()
    except UnicodeEncodeError:
      return file.undecodable(file.name, line, 0)
    return _no_column(file, f'{file.path}:{line}', header, side)
  return [header.index(column) for column in columns.values()]


def _no_column(
  file: documents.File, where: str, names: list[str], side: str
) -> documents.Skipped:
  column = file.options.columns[side]
  if column in names:
    detail = f'{where} has {names.count(column)} columns {column!r}'
    mend = 'give each a name of its own'
    return file.bad(file.name, 'duplicate column', detail, mend)
  detail = f'{where} has no column {column!r} (its columns: {listed(names)})'
  mend = f'name the one that holds the {side} with data.{side}_column'
  return file.bad(file.name, f'no {side} column', detail, mend)


def listed(names: Iterable[str]) -> str:
  """The first twenty names, quoted, with at most forty characters each."""
  names = [repr(name[:40]) for name in names]
  return ', '.join(names[:20] + ['...'] * (len(names) > 20)) or 'none'


def _ragged(
  file: documents.File, name: str, line: int, row: list[str], header: list[str]
) -> documents.Skipped:
  return file.bad(
    name,
    'ragged row',
    f'{file.path}:{line} has {len(row)} field(s) where the header has '
    f'{len(header)}',
    'quote fields that hold a delimiter, a quote or a line end',
    len(','.join(row).encode(errors='surrogateescape')),
  )


def _undecodable(
  file: documents.File,
  name: str,
  line: int,
  row: list[str],
  index: int,
  start: int,
) -> documents.Skipped:
  line += sum(field.count('\n') for field in row[:index])
  line += row[index].count('\n', 0, start)
  size = len(row[index].encode(errors='surrogateescape'))
  return file.undecodable(name, line, size)


def parquet(file: documents.File) -> documents.Results:
  """Rows of a Parquet file, numbered from 1; no other columns are read."""
  # Imported here: it takes a quarter of a second, and few runs need it.
  import pyarrow
  from pyarrow import parquet as pq

  with contextlib.ExitStack() as stack:
    source = stack.enter_context(streams.open_bytes(file.path))
    if streams.compression(file.path):  # Parquet is read from its end.
      packed, source = source, stack.enter_context(tempfile.TemporaryFile())
      shutil.copyfileobj(packed, source)
    if not source.seek(0, io.SEEK_END):
      return
    try:
      table = stack.enter_context(
        pq.ParquetFile(source, buffer_size=_BATCH_BYTES, pre_buffer=False)
      )
      mistake = _parquet_mistake(file, table.schema_arrow)
      if mistake:
        yield mistake
        return
      number = 0
      for batch in table.iter_batches(
        _batch_rows(file, table.metadata),
        columns=list(file.options.columns.values()),
        use_threads=False,
      ):
        # As bytes: nothing has checked yet that the strings are UTF-8.
        values = [
          batch.column(column).cast(pyarrow.large_binary()).to_pylist()
          for column in file.options.columns.values()
        ]
        for row in zip(*values, strict=True):
          number += 1
          yield from _values(file, number, row)
    except (pyarrow.ArrowException, OSError) as error:
      if isinstance(error, OSError) and error.errno:
        raise
      said = f'is broken ({errors.one_line(error)})'
      raise streams.StreamError('broken Parquet', said) from error


def _parquet_mistake(file: documents.File, schema) -> documents.Skipped | None:
  from pyarrow import types

  for side, column in file.options.columns.items():
    if schema.names.count(column) != 1:
      return _no_column(file, str(file.path), schema.names, side)
    kind = schema.field(column).type
    if types.is_dictionary(kind):
      kind = kind.value_type
    if any(
      is_kind(kind)
      for is_kind in (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
      )
    ):
      continue
    detail = f'{file.path} has a column {column!r} of {kind}, not of strings'
    mend = (
      f'name the one that holds the {side} with data.{side}_column, or convert '
      'it'
    )
    return file.bad(file.name, f'no {side} column', detail, mend)
  return None


def _batch_rows(file: documents.File, metadata) -> int:
  """Number of rows that hold about `_BATCH_BYTES` of text."""
  size = 0
  for group in range(metadata.num_row_groups):
    row_group = metadata.row_group(group)
    for index in range(row_group.num_columns):
      column = row_group.column(index)
      if column.path_in_schema in file.options.columns.values():
        size += column.total_uncompressed_size
  rows = _BATCH_BYTES * metadata.num_rows // max(1, size)
  return min(max(1, rows), _BATCH_ROWS)


def _values(
  file: documents.File, number: int, row: Sequence[bytes | None]
) -> documents.Results:
  name = f'{file.name}:{number}'
  try:
    yield from file.record(name, [(data or b'').decode() for data in row])
  except UnicodeDecodeError as error:
    detail = f'{file.path}:{number} is not UTF-8 at byte {error.start} of a row'
    mend = 'write the column as UTF-8'
    size = sum(len(data or b'') for data in row)
    yield file.bad(name, 'not UTF-8', detail, mend, size)
