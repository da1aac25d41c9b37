"""The first half of preparation: documents are read, cleaned and spooled.

  sources -> batches -> workers: clean, digest, sketch -> spool (JSON lines)
          -> exact duplicates, near duplicates, splits: see `splits.py`

The number, sizes, offset and digests of each document stay in memory; its text
and its sketch are on disk. A pair is a document of two texts: each is cleaned,
the digest is of both, and the split depends on the source text alone.
"""

import array
import dataclasses
import functools
import hashlib
import json
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lm import errors, field
from lm.data import duplicates, sources as sources_lib, tally, workers
from lm.data.sources import documents
from lm.data.text import cleaning

SPLITS = ('train', 'validation', 'test')
# In place of a split, if the source fixes none.
FREE = -1
# Sizes of the batches that workers clean.
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 1000
# Below, documents that have little in common are compared, all with all.
_LEAST_NEAR = 0.7


def default_rules(*, packaged: bool, pairs: bool) -> tuple[str, ...]:
  """Default rules; for packages only `unicode`, and what fields ask for."""
  if pairs:
    return ('unicode', 'scrub')
  if packaged:
    return ('unicode', 'language', 'scrub')
  return tuple(cleaning.RULES)


def _unread_without(*rules: str) -> Callable[[Any, Any], str | None]:
  """`Field.unread` of what these rules of cleaning read."""

  def why(config, value) -> str | None:
    del value
    data, running = config.data, {}
    for source in sources_lib.names(data):
      packaged = source in sources_lib.PACKAGED
      names = data.cleaning.rules
      if names is None:
        pairs = data.target_column is not None
        names = default_rules(packaged=packaged, pairs=pairs)
      running |= dict(cleaning.make(data, names))
    if any(rule in running for rule in rules):
      return None
    return (
      f'is not read: the rule {" or ".join(rules)} does not run (rules of '
      f'cleaning that do: {", ".join(running) or "none"}); leave it out, or '
      'give the rule in data.cleaning.rules'
    )

  return why


def _unread_share(config, value) -> str | None:
  if config.data.language is None:
    return 'is not read without data.language; leave it out, or give that, too'
  return _unread_without('language')(config, value)


def _unread_of_pairs(config, value) -> str | None:
  column = config.data.target_column
  # 0 asks for what is done with pairs anyway.
  if column is None or not value:
    return None
  return (
    f'is not read: of the pairs of data.target_column={column!r} near '
    'duplicates stay; leave it out'
  )


def _check_near(config):
  near = config.data.near_duplicates
  if 0 < near < _LEAST_NEAR:
    raise errors.UserError(
      f'data.near_duplicates={near} is out of range: give {_LEAST_NEAR} to 1, '
      'or 0 to keep them'
    )


def _check_rules(config):
  data = config.data
  for rule, _ in cleaning.make(data, data.cleaning.rules or ()):
    if data.target_column is not None and rule not in cleaning.OF_PAIRS:
      raise errors.UserError(
        f'data.cleaning.rules: {rule!r} judges documents, but '
        f'data.target_column={data.target_column!r} makes pairs; choose from '
        f'{", ".join(cleaning.OF_PAIRS)}'
      )


FIELDS = field.section(
  language=field.Field(
    None,
    'A language (en, zh, de, ...) or a script (Latin, Han, Cyrillic, ...): '
    'documents in others are dropped.',
    kind=str,
    none='all are kept',
    unread=_unread_without('language', 'symbols'),
  ),
  near_duplicates=field.Field(
    0.8,
    'Of two documents whose MinHash sketches agree in at least this share, '
    '0.7 to 1, one is dropped; 0: both are kept.',
    least=0,
    most=1,
    unread=_unread_of_pairs,
    check=_check_near,
  ),
  cleaning=field.section(
    'What is cleaned and dropped.',
    rules=field.Field(
      None,
      f'Names of rules: {", ".join(cleaning.RULES)}.',
      kind=tuple,
      none='all for files; for packaged sources unicode, and language and '
      'scrub where they are asked for',
      check=_check_rules,
    ),
    min_words=field.Field(
      50,
      'Fewest words of a document, in scripts that put blanks between words.',
      least=0,
      unread=_unread_without('length'),
    ),
    max_words=field.Field(
      250_000,
      "Most words of a document; Gopher's limit is 100,000, but a part of "
      'data.document_bytes can have 250,000.',
      least=1,
      unread=_unread_without('length'),
    ),
    min_characters=field.Field(
      100,
      'Fewest characters of a document in Han, kana, Thai, ..., without '
      'blanks.',
      least=0,
      unread=_unread_without('length'),
    ),
    max_digits=field.Field(
      0.15,
      'Largest share of digits among the characters, without blanks.',
      least=0,
      most=1,
      unread=_unread_without('symbols'),
    ),
    language_share=field.Field(
      0.5,
      'Smallest share of letters in the script or scripts of data.language.',
      least=0,
      most=1,
      unread=_unread_share,
    ),
    scrub=field.Field(
      False,
      'Replaces e-mail addresses, telephone numbers and IP addresses.',
      unread=_unread_without('scrub'),
    ),
  ),
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings that workers need; hashable.

  rules: for each source, the names of its cleaning rules, in the order of
    `cleaning.RULES` and without those that have no effect.
  language: the only one that is kept; None keeps all.
  cleaning: the rules' settings, as pairs of a name and a value.
  near_duplicates: whether sketches are needed.
  """

  rules: tuple[tuple[str, ...], ...]
  language: str | None
  cleaning: tuple[tuple[str, Any], ...]
  near_duplicates: bool

  def as_dict(self) -> dict[str, Any]:
    """Everything that cleaning depends on: the rules, and what they read."""
    values, used = dict(self.cleaning), set().union(*self.rules)
    found = {'rules': self.rules}
    for rule in cleaning.RULES:
      if rule in used:
        found |= {name: values[name] for name in cleaning.FIELDS.get(rule, ())}
    if used & {'language', 'symbols'}:
      found['language'] = self.language
    return found


@dataclasses.dataclass(frozen=True)
class Collected:
  """Columns of the spooled documents, [D] unless said otherwise.

  offset: int64, byte of the document's line in the spool.
  size, characters: int64, of the text, or of both texts of a pair.
  source: int16, number of the source.
  fixed: int8, index into SPLITS that the source fixes, FREE if it fixes none.
  digest: uint64 [D, 2], BLAKE2b of the text, or of both texts of a pair.
  group: uint64 [D, 2], equal for documents that must be in the same split:
    BLAKE2b of a pair's source text, else the digest.
  sketch: uint32 [D, P] on disk; None if near duplicates are kept.
  """

  offset: np.ndarray
  size: np.ndarray
  characters: np.ndarray
  source: np.ndarray
  fixed: np.ndarray
  digest: np.ndarray
  group: np.ndarray
  sketch: np.ndarray | None


def collect(
  sources: Sequence[sources_lib.Source],
  settings: Settings,
  folder: pathlib.Path,
  pool: workers.Pool,
  counts: tally.Tally,
  advance: Callable[[int], None],
) -> Collected:
  """Cleans the documents of all sources into `folder`/documents.jsonl.

  Args:
    counts: counts what is read, changed and dropped.
    advance: called with the number of bytes read since the last call.
  """
  columns = {
    **{name: array.array('q') for name in ('offset', 'size', 'characters')},
    **{'source': array.array('h'), 'fixed': array.array('b')},
  }
  digests, groups, end = bytearray(), bytearray(), 0
  batches = _batches(sources)
  with (
    open(folder / 'documents.jsonl', 'wb') as spool,
    open(folder / 'sketches', 'wb') as sketches,
  ):
    for batch in pool.map(_clean_batch, batches, settings):
      for document in batch:
        name = sources[document.source].name
        counts.read(name, document.read_size, document.read_characters)
        advance(document.read_size)
        if isinstance(document, _Dropped):
          counts.drop(
            name,
            document.reason,
            document.read_size,
            document.read_characters,
            document.example,
          )
          continue
        counts.change(name, document.changed)
        row = (end, document.size, document.characters, document.source)
        for column, value in zip(columns, (*row, document.fixed), strict=True):
          columns[column].append(value)
        spool.write(document.line)
        sketches.write(document.sketch)
        digests += document.digest
        groups += document.group
        end += len(document.line)
  arrays = {n: np.frombuffer(c, c.typecode) for n, c in columns.items()}
  sketch = None
  if settings.near_duplicates and len(digests):
    shape = (-1, duplicates.PERMUTATIONS)
    mapped = np.memmap(folder / 'sketches', np.uint32, 'r')
    sketch = mapped.reshape(shape)
  digest = np.frombuffer(bytes(digests), '<u8').reshape(-1, 2)
  group = digest
  if groups:
    group = np.frombuffer(bytes(groups), '<u8').reshape(-1, 2)
  return Collected(**arrays, digest=digest, group=group, sketch=sketch)


def excerpt(sides: Sequence[str]) -> str:
  """The beginning of a text, or of a pair."""
  return tally.excerpt(' -> '.join(sides))


def _batches(sources) -> Iterator[list[tuple]]:
  """Lists of (number of the source, document), one list per batch."""
  batch, characters = [], 0
  for number, source in enumerate(sources):
    for document in source.documents():
      batch.append((number, document))
      if isinstance(document, sources_lib.Document):
        characters += len(document.text) + len(document.target or '')
      if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
        yield batch
        batch, characters = [], 0
  if batch:
    yield batch


# The functions below run in the workers.


@dataclasses.dataclass(frozen=True)
class _Kept:
  """A document for the spool; `line` is JSON, `group` is b'' but for pairs."""

  source: int
  read_size: int
  read_characters: int
  fixed: int
  changed: tuple[str, ...]
  size: int
  characters: int
  line: bytes
  digest: bytes
  sketch: bytes
  group: bytes = b''


@dataclasses.dataclass(frozen=True)
class _Dropped:
  source: int
  read_size: int
  read_characters: int
  reason: str
  example: dict[str, Any]


def _clean_batch(batch, settings: Settings) -> list[_Kept | _Dropped]:
  rules = _rules(settings)
  return [_clean(*item, rules[item[0]], settings) for item in batch]


@functools.lru_cache(maxsize=1)
def _rules(settings: Settings):
  cfg = types.SimpleNamespace(
    language=settings.language,
    cleaning=types.SimpleNamespace(**dict(settings.cleaning)),
  )
  return [cleaning.make(cfg, names) for names in settings.rules]


def _clean(source, document, rules, settings) -> _Kept | _Dropped:
  if isinstance(document, sources_lib.Skipped):
    example = {'name': document.name, 'detail': document.detail}
    return _Dropped(source, document.size, 0, document.reason, example)
  if document.target is not None:
    return _clean_pair(source, document, rules)
  read = (source, len(document.text.encode()), len(document.text))
  if document.is_page:
    rules = [(name, rule) for name, rule in rules if name != 'html']
  text, changed = cleaning.clean(rules, document.text)
  if isinstance(text, cleaning.Dropped):
    example = {'name': document.name, 'text': excerpt([document.text])}
    return _Dropped(*read, text.reason, example)
  content = text.encode()
  sketch = (
    duplicates.sketch(text).tobytes() if settings.near_duplicates else b''
  )
  return _Kept(
    *read,
    fixed=SPLITS.index(document.split) if document.split else FREE,
    changed=changed,
    size=len(content),
    characters=len(text),
    line=_line({'name': document.name, 'text': text}),
    digest=_digest(content),
    sketch=sketch,
  )


def _clean_pair(source, document, rules) -> _Kept | _Dropped:
  """Like `_clean`, for each side separately."""
  sides = (document.text, document.target)
  read = (source, sum(len(s.encode()) for s in sides), sum(map(len, sides)))
  cleaned, changed, reason = [], set(), None
  for side in sides:
    text, names = cleaning.clean(rules, side)
    changed.update(names)
    if isinstance(text, cleaning.Dropped):
      # `blank_side` reports below which side is empty.
      reason = reason if text.reason == 'empty' else text.reason
      text = ''
    cleaned.append(text)
  reason = reason or documents.blank_side(*cleaned)
  if reason:
    example = {'name': document.name, 'text': excerpt(sides)}
    return _Dropped(*read, reason, example)
  contents = [text.encode() for text in cleaned]
  # Without the length another pair could have the same bytes.
  digest = _digest(b'%d ' % len(contents[0]) + b''.join(contents))
  text, target = cleaned
  return _Kept(
    *read,
    fixed=FREE,
    changed=tuple(sorted(changed)),
    size=sum(map(len, contents)),
    characters=sum(map(len, cleaned)),
    line=_line({'name': document.name, 'text': text, 'target': target}),
    digest=digest,
    sketch=b'',
    group=_digest(contents[0]),
  )


def _line(document: dict[str, str]) -> bytes:
  return json.dumps(document, ensure_ascii=False).encode() + b'\n'


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=16).digest()
