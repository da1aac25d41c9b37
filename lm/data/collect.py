"""The first half of preparation: read, clean, and drop what is there twice.

  sources -> batches -> workers: clean, digest, sketch -> spool (JSON lines)
          -> exact duplicates, near duplicates -> splits

Of each document its number, sizes, place and digest stay in memory; its text
and its sketch lie on disk.
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

from lm import errors
from lm.data import cleaning, duplicates, sources as sources_lib, tally, workers

SPLITS = ('train', 'validation', 'test')
# Of a document that is in no split: not yet, or for good.
_FREE, _DUPLICATE, _NEAR_DUPLICATE = -1, -2, -3
_REASONS = {_DUPLICATE: 'duplicate', _NEAR_DUPLICATE: 'near duplicate'}
# Text and documents that are handed to a worker at once.
_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 1000


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a worker must know; hashable.

  rules: for each source the names of its cleaning rules, in the order of
  `cleaning.RULES` and without those that are not set. language: the only one
  that is kept. cleaning: the rules' settings, as pairs. near_duplicates:
  whether sketches are wanted.
  """

  rules: tuple[tuple[str, ...], ...]
  language: str | None
  cleaning: tuple[tuple[str, Any], ...]
  near_duplicates: bool

  def as_dict(self) -> dict[str, Any]:
    """What cleaning depends on: the rules, and what these read."""
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
  """The spooled documents, by number D.

  offset: int64, byte of its line in the spool. size, characters: int64, of the
  text. source: int16. fixed: int8, index into SPLITS that the source gives, -1
  where it gives none. digest: uint64 [D, 2], BLAKE2b of the text. sketch:
  uint32 [D, P] on disk, None without near duplicates.
  """

  offset: np.ndarray
  size: np.ndarray
  characters: np.ndarray
  source: np.ndarray
  fixed: np.ndarray
  digest: np.ndarray
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
    counts: is told of all that is read, changed and dropped.
    advance: is told of the bytes read since the last call.
  """
  columns = {
    **{name: array.array('q') for name in ('offset', 'size', 'characters')},
    **{'source': array.array('h'), 'fixed': array.array('b')},
  }
  digests, end = bytearray(), 0
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
        end += len(document.line)
  arrays = {n: np.frombuffer(c, c.typecode) for n, c in columns.items()}
  sketch = None
  if settings.near_duplicates and len(digests):
    shape = (-1, duplicates.PERMUTATIONS)
    mapped = np.memmap(folder / 'sketches', np.uint32, 'r')
    sketch = mapped.reshape(shape)
  digest = np.frombuffer(bytes(digests), '<u8').reshape(-1, 2)
  return Collected(**arrays, digest=digest, sketch=sketch)


def assign_splits(
  collected: Collected,
  config_data,
  sources: Sequence[sources_lib.Source],
  folder: pathlib.Path,
  counts: tally.Tally,
) -> np.ndarray:
  """Index into SPLITS by document, below 0 for a duplicate; int8 [D].

  Of equal texts the one in a split that its source fixes is kept, test before
  validation before train, else the first; of near duplicates likewise.
  Where the source fixes no split, its documents are taken in the order of their
  digests, so that the split depends on the texts and not on names or order:
  first for test, then for validation, at least one for each. No text is near to
  one in another split, since of two near ones one is dropped; where
  `near_duplicates` is 0, none is equal to one.

  Raises:
    UserError: a source has too little text for three splits.
  """
  split_D = np.full(len(collected.size), _DUPLICATE, np.int8)
  priority = np.lexsort((np.arange(len(split_D)), -collected.fixed))
  view = np.ascontiguousarray(collected.digest).view('<u8,<u8').reshape(-1)
  _, first = np.unique(view[priority], return_index=True)
  by_digest = priority[first]
  twin = similarity = None
  if collected.sketch is not None:
    unique = priority[np.sort(first)]
    twin, similarity = duplicates.find(
      collected.sketch, unique, config_data.near_duplicates
    )
    split_D[twin >= 0] = _NEAR_DUPLICATE
    by_digest = by_digest[twin[by_digest] < 0]
  split_D[by_digest] = collected.fixed[by_digest]
  of_source = collected.source[by_digest]
  for number, source in enumerate(sources):
    members = by_digest[of_source == number]
    if not len(members):
      of_all = split_D[collected.source == number]
      raise _no_text(source, config_data, counts, of_all)
    _split_free(
      source,
      members[split_D[members] == _FREE],
      collected.size,
      split_D,
      config_data,
      config_data.held_out_bytes // len(sources),
    )
  _count(collected, split_D, twin, similarity, sources, folder, counts)
  return split_D


def _no_text(source, config_data, counts, split_D) -> errors.UserError:
  dropped = counts.as_dict()[source.name]['dropped']
  numbers = {reason: amount['documents'] for reason, amount in dropped.items()}
  for code, reason in _REASONS.items():
    if number := int((split_D == code).sum()):
      numbers[reason] = number
  reasons = ', '.join(f'{number} {r}' for r, number in numbers.items())
  where = f'data.sources: {source.name!r}'
  if not config_data.sources:
    where = f'data.source={source.name!r}'
    if config_data.path:
      where += f' with data.path={config_data.path!r}'
  return errors.UserError(
    f'{where} holds no text that is kept (dropped: {reasons or "none"}); give '
    "more, or turn cleaning off with --config.data.cleaning.rules='()'"
  )


def _split_free(source, free, size_D, split_D, config_data, held_out_bytes):
  """Splits the documents `free`, given in the order of their digests."""
  if not len(free):
    return
  if len(free) < 3:
    total = int(size_D[free].sum())
    cut = f'--config.data.document_bytes={max(1024, total // 20)}'
    where = f'data.sources: {source.name!r}: ' if config_data.sources else ''
    raise errors.UserError(
      f'{where}{len(free)} document(s) of {total} bytes cannot be split into '
      'train, validation and test: three are needed; give more'
      + (f', or cut them with {cut}' if total > 3 * 1024 else '')
    )
  wanted = max(1, round(config_data.held_out_fraction * len(free)))
  wanted = min(wanted, (len(free) - 1) // 2)  # One at least is to train on.
  split_D[free] = SPLITS.index('train')
  taken = 0
  for name in ('test', 'validation'):
    rest = free[taken : taken + wanted]
    fits = np.cumsum(size_D[rest]) <= held_out_bytes
    number = max(1, int(fits.sum()))
    split_D[rest[:number]] = SPLITS.index(name)
    taken += number


def _count(collected, split_D, twin, similarity, sources, folder, counts):
  """Tells `counts` what stays and which duplicates go."""
  for number, source in enumerate(sources):
    kept = (split_D >= 0) & (collected.source == number)
    size, characters = collected.size[kept], collected.characters[kept]
    counts.keep(
      source.name, int(size.sum()), int(characters.sum()), int(kept.sum())
    )
  with open(folder / 'documents.jsonl', 'rb') as spool:
    for number in np.flatnonzero(split_D < 0).tolist():
      reason = _REASONS[int(split_D[number])]
      name = sources[collected.source[number]].name
      example = None
      if counts.wants_example(name, reason):
        document = _read(spool, collected.offset[number])
        example = {
          'name': document['name'],
          'text': tally.excerpt(document['text']),
        }
        if split_D[number] == _NEAR_DUPLICATE:
          other = _read(spool, collected.offset[twin[number]])
          share = similarity[number]
          example['detail'] = f'{share:.2f} like {other["name"]}'
      size, characters = collected.size[number], collected.characters[number]
      counts.drop(name, reason, int(size), int(characters), example)


def _read(spool, offset: int) -> dict[str, str]:
  spool.seek(offset)
  return json.loads(spool.readline())


def _batches(sources) -> Iterator[list[tuple]]:
  """(source, document) pairs, as many as a worker takes at once."""
  batch, characters = [], 0
  for number, source in enumerate(sources):
    for document in source.documents():
      batch.append((number, document))
      if isinstance(document, sources_lib.Document):
        characters += len(document.text)
      if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
        yield batch
        batch, characters = [], 0
  if batch:
    yield batch


# In the workers.


@dataclasses.dataclass(frozen=True)
class _Kept:
  """A document for the spool; `line` is its JSON."""

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
  read = (source, len(document.text.encode()), len(document.text))
  if document.is_page:
    rules = [(name, rule) for name, rule in rules if name != 'html']
  text, changed = cleaning.clean(rules, document.text)
  if isinstance(text, cleaning.Dropped):
    example = {'name': document.name, 'text': tally.excerpt(document.text)}
    return _Dropped(*read, text.reason, example)
  content = text.encode()
  line = json.dumps(
    {'name': document.name, 'text': text}, ensure_ascii=False
  ).encode()
  sketch = (
    duplicates.sketch(text).tobytes() if settings.near_duplicates else b''
  )
  return _Kept(
    *read,
    fixed=SPLITS.index(document.split) if document.split else _FREE,
    changed=changed,
    size=len(content),
    characters=len(text),
    line=line + b'\n',
    digest=hashlib.blake2b(content, digest_size=16).digest(),
    sketch=sketch,
  )
