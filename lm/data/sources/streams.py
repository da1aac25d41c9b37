"""Files as streams of UTF-8, unpacked and transcoded chunk by chunk."""

import codecs
import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from lm import errors

_CHUNK_BYTES = 1 << 16
# Size of the compressed chunks that are unpacked at a time. All that a chunk
# unpacks to is in memory at once: 128 KiB for each 20 bytes of repetitive text.
_ZSTD_CHUNK_BYTES = 1 << 8
# Window that `zstd --long=31` needs; the default is 128 MiB.
_ZSTD_WINDOW_BYTES = 1 << 31


class StreamError(Exception):
  """A file that cannot be read to its end.

  reason: short, the same for all such files.
  text: the rest of a sentence that begins with the path.
  """

  def __init__(self, reason: str, text: str):
    super().__init__(text)
    self.reason = reason


def compression(path: pathlib.Path) -> str:
  """The suffix in COMPRESSIONS that a file's name ends in, or ''."""
  suffix = path.suffix.lower()
  return suffix if suffix in COMPRESSIONS else ''


def is_utf8(encoding: str) -> bool:
  """Whether a codec is UTF-8 by any of its names."""
  return codecs.lookup(encoding).name in ('utf-8', 'utf-8-sig')


def check_encoding(encoding: str):
  """Raises UserError unless `encoding` is a codec of Python that can stream."""
  try:
    data = 'text'.encode(encoding)
    codecs.getincrementaldecoder(encoding)(_MARK).decode(data, True)
  except (LookupError, ValueError):  # UnicodeError is a ValueError.
    raise errors.UserError(
      f"unknown data.encoding='{encoding}'; give a text codec of Python, such "
      f'as utf-8, gb18030, big5, utf-16'
    ) from None


@contextlib.contextmanager
def open_bytes(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file's bytes, unpacked if its name ends in .gz or .zst.

  Reading raises `StreamError` where they cannot be unpacked. A compressed file
  can only be read forwards.
  """
  with open(path, 'rb') as file:
    suffix = compression(path)
    if suffix:
      with _stream(COMPRESSIONS[suffix](file)) as stream:
        yield stream
    else:
      yield file


@contextlib.contextmanager
def open_utf8(path: pathlib.Path, encoding: str) -> Iterator[BinaryIO]:
  """The bytes of `open_bytes` in UTF-8.

  Bytes that `encoding` cannot decode become bytes FF, which UTF-8 never has, so
  that decoding this part of the stream fails at them.
  """
  with open_bytes(path) as file:
    if is_utf8(encoding):
      yield file
    else:
      with _stream(_transcode(file, encoding)) as stream:
        yield stream


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
  """Unpacks every member of a gzip file."""
  size, line = 0, 1
  try:
    with gzip.GzipFile(fileobj=file) as members:
      while data := members.read1(_CHUNK_BYTES):
        size += len(data)
        line += data.count(b'\n')
        yield data
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise _broken('gzip', size, line, errors.one_line(error)) from error


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
  """Unpacks every frame of a Zstandard file."""
  size, line = 0, 1
  context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
  frame = None
  try:
    while packed := file.read(_ZSTD_CHUNK_BYTES):
      while packed:
        frame = frame or context.decompressobj()
        data = frame.decompress(packed)
        packed = b''
        if frame.eof:
          packed, frame = frame.unused_data, None
        size += len(data)
        line += data.count(b'\n')
        if data:
          yield data
  except zstandard.ZstdError as error:
    said = errors.one_line(error).removeprefix('zstd decompress error: ')
    raise _broken('zstd', size, line, said) from error
  if frame:  # zstandard's own reader accepts a truncated file.
    raise _broken('zstd', size, line, 'the file ends within a frame')


# Suffix -> generator of the unpacked chunks of such a file.
COMPRESSIONS = {'.gz': _gunzip, '.zst': _unzstd}


def _broken(kind: str, size: int, line: int, said: str) -> StreamError:
  return StreamError(
    f'broken {kind}',
    f'is broken {kind} in line {line}, after {size} unpacked bytes ({said})',
  )


_MARK = 'lm.mark'


def _mark(error: UnicodeError) -> tuple[str | bytes, int]:
  """An error handler: bytes become U+DCFF, and lone surrogates bytes FF."""
  if isinstance(error, UnicodeEncodeError):
    return b'\xff' * (error.end - error.start), error.end
  return '\udcff', error.end


codecs.register_error(_MARK, _mark)


def _transcode(file: BinaryIO, encoding: str) -> Iterator[bytes]:
  decoder = codecs.getincrementaldecoder(encoding)(_MARK)
  data = None
  while data != b'':
    data = file.read(_CHUNK_BYTES)
    try:
      text = decoder.decode(data, not data)
    except UnicodeError as error:  # UTF-16, UTF-32 without a BOM.
      said = f'is not {encoding} ({errors.one_line(error)})'
      raise StreamError(f'not {encoding}', said) from error
    yield text.encode('utf-8', _MARK)


def _stream(chunks: Iterator[bytes]) -> BinaryIO:
  return io.BufferedReader(_Chunks(chunks), 2 * _CHUNK_BYTES)


class _Chunks(io.RawIOBase):
  """Chunks of bytes as a file."""

  def __init__(self, chunks: Iterator[bytes]):
    self._chunks = chunks
    self._rest = memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._rest:
      chunk = next(self._chunks, None)
      if chunk is None:
        return 0
      self._rest = memoryview(chunk)
    size = min(len(buffer), len(self._rest))
    buffer[:size] = self._rest[:size]
    self._rest = self._rest[size:]
    return size
