"""Preparation: documents to tokenized shards, once, in a folder of their own.

  source -> spool (documents.jsonl) -> duplicates and splits by digest
         -> tokenizer, trained on the training split
         -> train/ and held_out/ shards, held-out text, suffix windows
         -> manifest.json

All of it is written into a temporary folder that is renamed when it is whole:
a killed preparation leaves nothing that a later one would trust. The folder's
name ends in a hash of the inputs' content and of the settings.
"""

import array
import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lm import errors, files
from lm.data import sources, store, tokenizer, windows, words

# Raised when prepared data of older code must not be used any more.
_FORMAT = 1
SPLITS = ('train', 'validation', 'test')
HELD_OUT = ('validation', 'test')
# The tokenizer is trained on at most about so many bytes of the training split.
_TOKENIZER_BYTES = 64 << 20
# Documents tokenized together, so that all cores have work.
_ENCODE_CHARACTERS = 4 << 20

_SETTINGS = (
  'source',
  'held_out_fraction',
  'held_out_bytes',
  'tokenizer',
  'vocab_size',
)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Prepared data on disk; the properties read what is asked for."""

  directory: pathlib.Path
  manifest: dict[str, Any]

  def train(self) -> store.Split:
    """The tokenized training split."""
    return store.Split(self.directory / 'train')

  def held_out(self, split: str) -> store.Split:
    """A tokenized held-out split."""
    return store.Split(self.directory / 'held_out' / split)

  def tokenizer(self) -> tokenizer.Tokenizer:
    """The tokenizer that made the ids."""
    return tokenizer.load(self.directory / 'tokenizer')

  @property
  def hash(self) -> str:
    """Of the inputs' content and the settings."""
    return self.manifest['hash']


def prepare(
  config_data, *, report: Callable[[str], None] = lambda line: None
) -> Prepared:
  """Prepares the data that `config.data` describes, or finds it prepared.

  Args:
    config_data: the resolved section; without `directory` the folder is
      `runs/data/SOURCE-HASH`.
    report: is told in a line what is being done.

  Raises:
    UserError: the text cannot be used, or `directory` holds other data.
  """
  source = sources.make(config_data)
  inputs = _hash_inputs(source)
  settings = {name: config_data[name] for name in _SETTINGS}
  if source.name == 'files':
    settings |= {name: config_data[name] for name in sources.FILE_FIELDS}
  if config_data.tokenizer not in tokenizer.KINDS:
    settings['tokenizer'] = tokenizer.load(config_data.tokenizer).digest
  fingerprint = {'format': _FORMAT, 'settings': settings, 'inputs': inputs}
  digest = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:16]
  directory = pathlib.Path(
    config_data.directory or f'runs/data/{source.name}-{digest}'
  )
  found = load(directory)
  if found is None and directory.exists() and any(directory.iterdir()):
    raise errors.UserError(
      f'data.directory={directory} is not empty and holds no prepared data; '
      'give a new or an empty folder'
    )
  if found is not None:
    if found.hash != digest:
      raise errors.UserError(
        f'data.directory={directory} was prepared from other text or settings '
        f'(hash {found.hash}, now {digest}); give another folder or remove it'
      )
    return found
  report(f'preparing {source.name} in {directory}')
  with _fresh_folder(directory) as temporary:
    manifest = _build(config_data, source, temporary, report)
    manifest = {'hash': digest, **fingerprint, **manifest}
    files.write_json(temporary / 'manifest.json', manifest)
  return load(directory)


def load(directory: pathlib.Path) -> Prepared | None:
  """Prepared data in a folder; None when there is none.

  Raises:
    UserError: its manifest is damaged.
  """
  path = directory / 'manifest.json'
  try:
    manifest = json.loads(path.read_text('utf-8'))
    manifest['hash']
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError):
    raise errors.UserError(
      f'{path} is damaged; remove the folder, it will be prepared again'
    ) from None
  return Prepared(directory, manifest)


def describe(prepared: Prepared) -> str:
  """What was prepared, for a terminal."""
  manifest = prepared.manifest
  lines = [f'{prepared.directory}']
  for split in SPLITS:
    lines.append(
      f'  {split:<11}{manifest["documents"][split]:>10,} documents'
      f'{manifest["bytes"][split]:>15,} bytes'
      f'{manifest["tokens"][split]:>13,} tokens'
    )
  for reason, number in manifest['dropped'].items():
    lines.append(f'  dropped    {number:>10,} documents, {reason}')
  coder = manifest['tokenizer']
  lines.append(
    f'  tokenizer  {coder["kind"]}, {coder["pieces"]:,} ids in use of '
    f'{coder["vocab_size"]:,}'
  )
  return '\n'.join(lines)


def _hash_inputs(source: sources.Source) -> list[dict[str, Any]]:
  """Name relative to the inputs' common folder, bytes and SHA-256 of each."""
  base = os.path.commonpath([p.parent for p in source.inputs])
  inputs = []
  for path in source.inputs:
    try:
      with open(path, 'rb') as f:
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
    except OSError as error:
      raise errors.UserError(
        f'data.source={source.name!r}: {path} cannot be read '
        f'({error.strerror}); make it readable or leave it out'
      ) from None
    name = path.relative_to(base).as_posix()
    inputs.append(
      {'name': name, 'bytes': path.stat().st_size, 'sha256': digest}
    )
  return inputs


@contextlib.contextmanager
def _fresh_folder(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder that becomes `directory` if all goes well."""
  directory.parent.mkdir(parents=True, exist_ok=True)
  prefix = f'.{directory.name}.'
  for stale in directory.parent.glob(f'{prefix}*.tmp'):
    with _held(stale) as free:
      if free:
        shutil.rmtree(stale, ignore_errors=True)
  made = tempfile.mkdtemp('.tmp', prefix, directory.parent)
  temporary = pathlib.Path(made)
  temporary.chmod(0o755)
  try:
    with _held(temporary):
      yield temporary
    if directory.exists() and not any(directory.iterdir()):
      directory.rmdir()
    try:
      temporary.rename(directory)
    except OSError:
      # Another process has prepared the same data meanwhile.
      if load(directory) is None:
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[bool]:
  """Holds a folder's lock, and tells whether no other process holds it.

  The lock ends with the process, unlike a process number in a name, which
  another process or host may have, too.
  """
  try:
    descriptor = os.open(folder, os.O_RDONLY)
  except FileNotFoundError:  # removed meanwhile
    yield False
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield True
  except BlockingIOError:
    yield False
  finally:
    os.close(descriptor)


def _build(config_data, source, directory, report) -> dict[str, Any]:
  spool = directory / 'documents.jsonl'
  collected = _collect(source, spool)
  split_D = _assign_splits(collected, config_data)
  counts = _count(collected, split_D)
  report(
    f'{counts["documents"]["train"]:,} training documents, '
    f'{counts["bytes"]["train"]:,} bytes; '
    f'{counts["documents"]["validation"]:,} for validation, '
    f'{counts["documents"]["test"]:,} for test'
  )
  coder = _make_tokenizer(config_data, spool, split_D, counts)
  coder.save(directory / 'tokenizer')
  report(f'{len(coder.pieces):,} pieces of a {coder.kind} tokenizer')
  tokens = _tokenize(spool, split_D, coder, directory)
  held_out_windows = windows.cut(
    _read_jsonl(directory / 'held_out' / 'test.jsonl')
  )
  windows_path = directory / 'held_out' / 'windows.jsonl'
  _write_jsonl(windows_path, held_out_windows)
  spool.unlink()
  report(
    f'{tokens["train"]:,} training tokens, '
    f'{counts["bytes"]["train"] / max(1, tokens["train"]):.2f} bytes each'
  )
  return {
    **counts,
    'tokens': tokens,
    'tokenizer': {
      'kind': coder.kind,
      'vocab_size': coder.vocab_size,
      'pieces': len(coder.pieces),
      'digest': coder.digest,
    },
    'windows': {
      'count': len(held_out_windows),
      'sha256': hashlib.sha256(windows_path.read_bytes()).hexdigest(),
    },
  }


@dataclasses.dataclass
class _Collected:
  """What is known of the spooled documents, by number.

  digests: uint64 [documents, 2], BLAKE2b of the text. sizes: int64, bytes.
  fixed: int8, index into SPLITS that the source gives, -1 where it gives none.
  dropped: what never reached the spool, by reason.
  """

  digests: np.ndarray
  sizes: np.ndarray
  fixed: np.ndarray
  dropped: collections.Counter


def _collect(source: sources.Source, spool: pathlib.Path) -> _Collected:
  """Copies a source's documents to disk, in order, and digests each."""
  digests, sizes, fixed = bytearray(), array.array('q'), array.array('b')
  dropped = collections.Counter()
  with open(spool, 'w', encoding='utf-8') as f:
    for document in source.documents():
      if isinstance(document, sources.Skipped):
        dropped[document.reason] += 1
        continue
      content = document.text.encode()
      digests += hashlib.blake2b(content, digest_size=16).digest()
      sizes.append(len(content))
      fixed.append(SPLITS.index(document.split) if document.split else -1)
      json.dump({'name': document.name, 'text': document.text}, f)
      f.write('\n')
  return _Collected(
    digests=np.frombuffer(bytes(digests), '<u8').reshape(-1, 2),
    sizes=np.array(sizes, np.int64),
    fixed=np.array(fixed, np.int8),
    dropped=dropped,
  )


def _assign_splits(collected: _Collected, config_data) -> np.ndarray:
  """Index into SPLITS by document, -1 for a duplicate of an earlier one.

  Where the source fixes no split, documents are taken in the order of their
  digests, so that the split depends on the texts and not on names or order:
  first for test, then for validation, at least one for each.
  """
  count = len(collected.sizes)
  if not count:
    raise errors.UserError(
      f'data.source={config_data.source!r} with data.path={config_data.path!r} '
      f'holds no text (dropped: {_reasons(collected.dropped)}); give files '
      'with text in them'
    )
  view = np.ascontiguousarray(collected.digests).view('<u8,<u8').reshape(-1)
  _, first = np.unique(view, return_index=True)
  split = np.full(count, -1, np.int8)
  split[first] = collected.fixed[first]
  free = first[collected.fixed[first] < 0]  # in the order of digests
  if not len(free):
    return split
  if len(free) < 3:
    total = int(collected.sizes[free].sum())
    cut = f'--config.data.document_bytes={max(1024, total // 20)}'
    raise errors.UserError(
      f'{len(free)} document(s) of {total} bytes cannot be split into train, '
      'validation and test: three are needed; give more'
      + (f', or cut them with {cut}' if total > 3 * 1024 else '')
    )
  wanted = max(1, round(config_data.held_out_fraction * len(free)))
  split[free] = SPLITS.index('train')
  taken = 0
  for name in ('test', 'validation'):
    rest = free[taken : taken + wanted]
    fits = np.cumsum(collected.sizes[rest]) <= config_data.held_out_bytes
    number = max(1, int(fits.sum()))
    split[rest[:number]] = SPLITS.index(name)
    taken += number
  return split


def _reasons(dropped: collections.Counter) -> str:
  return ', '.join(f'{n} {reason}' for reason, n in dropped.items()) or 'none'


def _count(collected: _Collected, split_D: np.ndarray) -> dict[str, Any]:
  dropped = dict(collected.dropped)
  duplicates = int((split_D < 0).sum())
  if duplicates:
    dropped['duplicate'] = duplicates
  members = {name: split_D == i for i, name in enumerate(SPLITS)}
  return {
    'documents': {name: int(m.sum()) for name, m in members.items()},
    'bytes': {n: int(collected.sizes[m].sum()) for n, m in members.items()},
    'dropped': dropped,
  }


def _make_tokenizer(config_data, spool, split_D, counts) -> tokenizer.Tokenizer:
  if config_data.tokenizer not in tokenizer.KINDS:
    coder = tokenizer.load(config_data.tokenizer)
    if coder.vocab_size != config_data.vocab_size:
      raise errors.UserError(
        f'data.vocab_size={config_data.vocab_size} but the tokenizer in '
        f'{config_data.tokenizer} has {coder.vocab_size}; leave it out'
      )
    return coder
  # Evenly spread, when there is more text than a vocabulary needs.
  every = -(-counts['bytes']['train'] // _TOKENIZER_BYTES) or 1
  train = SPLITS.index('train')
  texts = (d['text'] for _, d in _select(spool, split_D, train))
  return tokenizer.train(
    config_data.tokenizer,
    config_data.vocab_size,
    itertools.islice(texts, 0, None, every),
  )


def _tokenize(spool, split_D, coder, directory) -> dict[str, int]:
  """Writes the shards of every split and the held-out texts; counts tokens."""
  tokens = {}
  for index, name in enumerate(SPLITS):
    folder = directory / ('train' if name == 'train' else f'held_out/{name}')
    writer = store.Writer(folder)
    tokens[name] = 0
    with contextlib.ExitStack() as stack:
      texts = None
      if name in HELD_OUT:
        path = directory / 'held_out' / f'{name}.jsonl'
        texts = stack.enter_context(open(path, 'w', encoding='utf-8'))
      documents = (d for _, d in _select(spool, split_D, index))
      for group in _grouped(documents):
        encoded = coder.encode_batch([d['text'] for d in group])
        for document, ids in zip(group, encoded, strict=True):
          tokens[name] += _add(writer, coder, document['text'], ids)
          if texts is not None:
            texts.write(json.dumps(document, ensure_ascii=False) + '\n')
    writer.close()
  return tokens


def _add(writer, coder, text: str, ids: np.ndarray) -> int:
  """Adds a document and its EOS; the number of tokens added."""
  ends = np.cumsum(coder.byte_lengths_V[ids], dtype=np.int64)
  starts = np.concatenate([[0], ends])
  word = words.word_index(text, starts[:-1])
  writer.add(
    np.append(ids, tokenizer.EOS), np.append(word, word[-1] + 1), starts
  )
  return len(ids) + 1


def _select(spool, split_D, index) -> Iterator[tuple[int, dict[str, str]]]:
  """Numbers and documents of one split, in order."""
  with open(spool, encoding='utf-8', newline='\n') as f:
    for number, line in enumerate(f):
      if split_D[number] == index:
        yield number, json.loads(line)


def _grouped(documents: Iterable[dict]) -> Iterator[list[dict]]:
  """Lists of documents of about `_ENCODE_CHARACTERS`."""
  group, size = [], 0
  for document in documents:
    group.append(document)
    size += len(document['text'])
    if size >= _ENCODE_CHARACTERS:
      yield group
      group, size = [], 0
  if group:
    yield group


def _read_jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with open(path, encoding='utf-8', newline='\n') as f:
    for line in f:
      yield json.loads(line)


def _write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]):
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  files.write(path, ''.join(lines))
