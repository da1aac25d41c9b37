"""Documents, and records of what is skipped."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from lm import errors
from lm.data.sources import streams

DOCUMENT_BYTES = 1 << 20
ERRORS = ('stop', 'skip')
# Maximum size of a line, a field of a table or an HTML page. A longer one is no
# document but, for instance, an unclosed quote.
RECORD_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, or a pair of texts.

  split: 'train', 'validation' or 'test'; None if the source fixes none.
  is_page: whether it is the text that a reader of an HTML page sees, in which
    any markup that is left is text.
  target: target of a pair, whose source is `text`; None if it is no pair.
  """

  name: str
  text: str
  split: str | None = None
  is_page: bool = False
  target: str | None = None


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A part of a source that is no document, and why.

  reason: short, the same for all that were skipped for it.
  size: bytes of UTF-8, 0 if unknown.
  detail: where it was and what is wrong with it.
  """

  name: str
  reason: str
  size: int = 0
  detail: str = ''


Results = Iterator[Document | Skipped]


@dataclasses.dataclass(frozen=True)
class Options:
  """Fields of `config.data`; `field` names the one that gives the path."""

  text_column: str = 'text'
  target_column: str | None = None
  encoding: str = 'utf-8'
  errors: str = 'stop'
  document_bytes: int = DOCUMENT_BYTES
  field: str = 'data.path'

  @property
  def columns(self) -> dict[str, str]:
    """Columns of a line or a row, by side: 'text', and 'target' of pairs."""
    if self.target_column is None:
      return {'text': self.text_column}
    return {'text': self.text_column, 'target': self.target_column}


def document(
  name: str, text: str, split: str | None = None
) -> Document | Skipped:
  """A document, unless the text is blank."""
  if not text or text.isspace():
    return Skipped(name, 'empty', len(text.encode()))
  return Document(name, text, split)


def pair(name: str, source: str, target: str) -> Document | Skipped:
  """A pair, unless a side is blank."""
  size = len(source.encode()) + len(target.encode())
  reason = blank_side(source, target)
  if reason:
    return Skipped(name, reason, size)
  return Document(name, source, target=target)


def blank_side(source: str, target: str) -> str | None:
  """The reason why two texts are no pair; None if they are one."""
  blank = [not side or side.isspace() for side in (source, target)]
  if all(blank):
    return 'empty'
  return {(True, False): 'empty source', (False, True): 'empty target'}.get(
    tuple(blank)
  )


def file_name(path: pathlib.PurePath) -> str:
  r"""A path as Unicode text: bytes that are not UTF-8 are shown as `\xB0`."""
  return os.fsencode(path.as_posix()).decode('utf-8', 'backslashreplace')


@dataclasses.dataclass(frozen=True)
class File:
  """A file to read as documents; `bad` alone applies `data.errors`."""

  path: pathlib.Path
  name: str
  options: Options

  def bad(
    self, name: str, reason: str, detail: str, mend: str, size: int = 0
  ) -> Skipped:
    """Reports a mistake: returns Skipped, or raises UserError for `stop`."""
    if self.options.errors == 'stop':
      raise errors.UserError(
        f'{self.options.field}: {detail}; {mend}, or pass over all such with '
        f"data.errors='skip'"
      )
    return Skipped(name, reason, size, detail)

  def undecodable(
    self, name: str, line: int, size: int, byte: int | None = None
  ) -> Skipped:
    """Reports text that is not in `data.encoding`, see `bad`.

    Args:
      line: number of the line in the file.
      byte: offset in the file; not reported for encodings other than UTF-8, of
        which only transcoded bytes are counted.
    """
    if not streams.is_utf8(self.options.encoding):
      kind, at = self.options.encoding, ''
      mend = 'give the encoding that it has as data.encoding'
    else:
      kind, at = 'UTF-8', '' if byte is None else f' at byte {byte}'
      mend = (
        'convert it, for instance with iconv -f GB18030 -t UTF-8 OLD > NEW, or '
        "give its encoding, for instance data.encoding='gb18030'"
      )
    detail = f'{self.path}:{line} is not {kind}{at}'
    return self.bad(name, f'not {kind}', detail, mend, size)

  def too_long(self, name: str, line: int, what: str) -> Skipped:
    """Reports what is longer than `RECORD_BYTES`, see `bad`."""
    detail = f'{self.path}:{line} begins {what} of over {RECORD_BYTES} bytes'
    return self.bad(name, 'too long', detail, 'cut it into several')

  def record(self, name: str, sides: Sequence[str]) -> Results:
    """The documents of a line or a row: texts, or a pair, which is never cut.

    Raises:
      UnicodeEncodeError: for a lone surrogate.
    """
    if len(sides) == 1:
      yield from self.whole(name, *sides)
    else:
      yield pair(name, *sides)

  def whole(self, name: str, text: str) -> Results:
    """A text, or its parts if it is longer than `document_bytes`.

    Raises:
      UnicodeEncodeError: for a lone surrogate.
    """
    data, limit = text.encode(), self.options.document_bytes
    if len(data) <= limit:
      yield document(name, text)
      return
    for part_name, part in number(name, cut(io.BytesIO(data), limit)):
      yield document(part_name, part.decode())


def number(name: str, parts: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
  """Names a single part `name`, several parts `name#0`, `name#1`, ..."""
  first, second = next(parts, b''), next(parts, None)
  if second is None:
    yield name, first
    return
  yield f'{name}#0', first
  yield f'{name}#1', second
  for index, part in enumerate(parts, 2):
    yield f'{name}#{index}', part


def cut(stream: BinaryIO, limit: int, head: bytes = b'') -> Iterator[bytes]:
  """Consecutive parts, of at most `limit` bytes, of `head` and the stream.

  A part ends at the last line end in its second half, or else at the last blank
  or tab there, or else at the last line end, blank or tab of all, or else
  before a character.
  """
  data = head + _read(stream, limit + 1 - len(head))
  while len(data) > limit:
    end = _end(data, limit)
    yield data[:end]
    data = data[end:] + _read(stream, end)
  if data:
    yield data


def _read(stream: BinaryIO, size: int) -> bytes:
  """Up to `size` bytes, in steps: a stream allocates all that is requested."""
  parts = []
  while part := stream.read(min(size, DOCUMENT_BYTES)):
    parts.append(part)
    size -= len(part)
  return b''.join(parts)


def _end(data: bytes, limit: int) -> int:
  """The byte at which to cut data that is longer than `limit`."""
  for least in (limit // 2, 0):
    for marks in ((b'\n',), (b' ', b'\t')):
      end = max(data.rfind(mark, least, limit) for mark in marks) + 1
      if end:
        return end
  end = limit
  while end > limit - 3 and data[end] & 0xC0 == 0x80:
    end -= 1
  return end
