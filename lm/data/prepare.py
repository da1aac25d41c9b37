"""Preparation: documents into tokenized shards, once, in their own folder.

  sources -> collect.py: cleaned, digested, spooled; duplicates; splits
          -> tokenizer, trained on the training split
          -> train/ and held_out/ shards, held-out text, suffix windows
          -> manifest.json

Everything is written into a temporary folder that is renamed when it is
complete: a killed preparation leaves nothing that a later one would trust. The
folder's name ends in a hash of the inputs' content and of the settings.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lm import errors, field
from lm.data import (
  collect,
  encoding,
  sources as sources_lib,
  splits,
  store,
  tally,
  tokenizer as tokenizer_lib,
  windows,
  workers,
)
from lm.data.sources import documents as documents_lib
from lm.data.text import cleaning, segmentation
from lm.runtime import console, files

# Increased when prepared data of older code must not be used any more.
_FORMAT = 5
SPLITS = collect.SPLITS
HELD_OUT = ('validation', 'test')
# Approximate limit on the bytes of training text that train a tokenizer.
_TOKENIZER_BYTES = 64 << 20
# Less text than this is prepared faster than workers start.
_SMALL_BYTES = 4 << 20

FIELDS = field.section(
  directory=field.Field(
    None,
    'Folder of the prepared data.',
    kind=str,
    none='runs/data/SOURCE-HASH, shared by runs',
    may_change=True,  # Its content may not, see `training/inputs.py`.
  ),
  words=field.Field(
    'characters',
    'A word in Chinese, where words are masked as a whole: each Han character, '
    'or what jieba, to be installed, finds.',
    choices=segmentation.WORDS,
  ),
  processes=field.Field(
    None,
    'Processes that prepare data.',
    kind=int,
    least=0,
    none='one a core, none for little text',
    may_change=True,
  ),
)

_SETTINGS = (
  'held_out_fraction',
  'held_out_bytes',
  'tokenizer',
  'vocab_size',
  'near_duplicates',
)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Prepared data on disk; the methods read its parts."""

  directory: pathlib.Path
  manifest: dict[str, Any]

  def train(self) -> store.Split:
    """The tokenized training split."""
    return store.Split(self.directory / 'train')

  def held_out(self, split: str) -> store.Split:
    """A tokenized held-out split."""
    return store.Split(self.directory / 'held_out' / split)

  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    """The tokenizer of the data."""
    return tokenizer_lib.load(self.directory / 'tokenizer')

  @property
  def hash(self) -> str:
    """Hash of the inputs' content and the settings."""
    return self.manifest['hash']


def prepare(
  config_data, *, report: Callable[[str], None] | None = None
) -> Prepared:
  """Prepares the data that `config.data` describes, unless it is prepared.

  Args:
    config_data: the resolved section; without `directory` the folder is
      `runs/data/SOURCE-HASH`.
    report: called with a line for each step; None: no progress is shown.

  Raises:
    UserError: the text cannot be used, or `directory` holds other data.
  """
  sources = sources_lib.make_all(config_data)
  settings = _collect_settings(config_data, sources)
  fingerprint = {
    'format': _FORMAT,
    'settings': _settings(config_data, sources, settings),
    'inputs': [_hash_inputs(source) for source in sources],
  }
  digest = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:16]
  # An entry's name can be a path, so a mixture is not named after its entries.
  name = 'mixture' if config_data.sources else sources[0].name
  directory = pathlib.Path(
    config_data.directory or f'runs/data/{name}-{digest}'
  )
  found = load(directory)
  if found is None and directory.exists() and any(directory.iterdir()):
    raise errors.UserError(
      f'data.directory={directory} is not empty and holds no prepared data; '
      'give a new or an empty folder'
    )
  if found is not None:
    return _checked(found, digest)
  say = report or (lambda line: None)
  say(f'preparing {name} in {directory}')
  with files.fresh_folder(
    directory, is_whole=lambda folder: load(folder) is not None
  ) as temporary:
    job = _Job(config_data, sources, settings, temporary, report)
    manifest = {'hash': digest, **fingerprint, **job.build()}
    files.write_json(temporary / 'manifest.json', manifest)
  # A faster process can have prepared the folder meanwhile.
  return _checked(load(directory), digest)


def load(directory: pathlib.Path) -> Prepared | None:
  """Prepared data in a folder; None if there is none.

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
  """Describes prepared data for a terminal."""
  manifest = prepared.manifest
  lines = [f'{prepared.directory}']
  for split in SPLITS:
    lines.append(
      f'  {split:<11}{manifest["documents"][split]:>10,} documents'
      f'{manifest["bytes"][split]:>15,} bytes'
      f'{manifest["tokens"][split]:>13,} tokens'
    )
  lines += tally.describe(manifest['sources'])
  tokenizer = manifest['tokenizer']
  lines.append(
    f'  tokenizer  {tokenizer["kind"]}, {tokenizer["pieces"]:,} ids in use of '
    f'{tokenizer["vocab_size"]:,}'
  )
  return '\n'.join(lines)


def _checked(found: Prepared, digest: str) -> Prepared:
  if found.hash != digest:
    raise errors.UserError(
      f'data.directory={found.directory} was prepared from other text or '
      f'settings (hash {found.hash}, now {digest}); give another folder or '
      'remove it'
    )
  return found


def _settings(config_data, sources, collecting) -> dict[str, Any]:
  """All settings that prepared data depends on."""
  settings = {name: config_data[name] for name in _SETTINGS}
  if config_data.target_column is not None:
    settings['target_column'] = config_data.target_column
    settings['near_duplicates'] = 0.0  # Not read for pairs.
  settings['sources'] = [s.name if s.packaged else 'files' for s in sources]
  settings['words'] = segmentation.describe(config_data.words)
  settings['cleaning'] = collecting.as_dict()
  if any(not source.packaged for source in sources):
    settings |= {name: config_data[name] for name in sources_lib.FILE_FIELDS}
  if config_data.tokenizer not in tokenizer_lib.KINDS:
    settings['tokenizer'] = tokenizer_lib.load(config_data.tokenizer).digest
  return settings


def _collect_settings(config_data, sources) -> collect.Settings:
  given = config_data.cleaning.rules
  pairs = config_data.target_column is not None
  names = [
    given
    if given is not None
    else collect.default_rules(packaged=source.packaged, pairs=pairs)
    for source in sources
  ]
  # In the order of RULES and without those that have no effect, so that equal
  # rules have equal hashes.
  rules = tuple(
    tuple(name for name, _ in cleaning.make(config_data, several))
    for several in names
  )
  cfg = config_data.cleaning.to_dict()
  del cfg['rules']
  return collect.Settings(
    rules=rules,
    language=config_data.language,
    cleaning=tuple(sorted(cfg.items())),
    # Short texts are near duplicates already if they differ in one word, such
    # as translations of 'Turn on' and 'Turn off'.
    near_duplicates=config_data.near_duplicates > 0 and not pairs,
  )


def _hash_inputs(source: sources_lib.Source) -> list[dict[str, Any]]:
  """Name in the inputs' common folder, bytes and SHA-256 of each input."""
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
    name = documents_lib.file_name(path.relative_to(base))
    inputs.append(
      {'name': name, 'bytes': path.stat().st_size, 'sha256': digest}
    )
  return inputs


class _Job:
  """A preparation; its stages share the attributes."""

  def __init__(
    self,
    config_data,
    sources,
    settings: collect.Settings,
    folder: pathlib.Path,
    report,
  ):
    self.data, self.sources, self.folder = config_data, sources, folder
    self.settings = settings
    self.shown, self.say = bool(report), report or (lambda line: None)
    self.counts = tally.Tally(source.name for source in sources)
    for source in sources:
      names = [
        documents_lib.file_name(pathlib.PurePath(path.name))
        for path in source.ignored
      ]
      self.counts.ignore(source.name, names)
    self.spool = folder / 'documents.jsonl'
    self.processes = config_data.processes
    if self.processes is None:
      size = sum(p.stat().st_size for s in sources for p in s.inputs)
      self.processes = workers.cores() if size >= _SMALL_BYTES else 0

  def build(self) -> dict[str, Any]:
    """Runs all stages and returns their entries of the manifest."""
    with workers.Pool(self.processes) as pool:
      with console.Megabytes(
        'reading', _known_total(self.sources), shown=self.shown
      ) as m:
        collected = collect.collect(
          self.sources,
          self.settings,
          self.folder,
          pool,
          self.counts,
          m.advance,
        )
      split_D = self._assign_splits(collected)
      tokenizer = self._make_tokenizer(collected, split_D)
      tokenizer.save(self.folder / 'tokenizer')
      self.say(
        f'{len(tokenizer.pieces):,} pieces of a {tokenizer.kind} tokenizer'
      )
      tokens = self._tokenize(pool, collected, split_D, tokenizer)
    documents, size = _by_split(split_D, collected.size)
    self.say(
      f'{tokens["train"]:,} training tokens, '
      f'{size["train"] / max(1, tokens["train"]):.2f} bytes each'
    )
    _, characters = _by_split(split_D, collected.characters)
    self.spool.unlink()
    (self.folder / 'sketches').unlink()
    return {
      'documents': documents,
      'bytes': size,
      'characters': characters,
      'tokens': tokens,
      'sources': self.counts.as_dict(),
      'tokenizer': {
        'kind': tokenizer.kind,
        'vocab_size': tokenizer.vocab_size,
        'pieces': len(tokenizer.pieces),
        'digest': tokenizer.digest,
      },
      'windows': self._cut_windows(),
    }

  def _assign_splits(self, collected: collect.Collected) -> np.ndarray:
    split_D = splits.assign(
      collected, self.data, self.sources, self.folder, self.counts
    )
    documents, size = _by_split(split_D, collected.size)
    dropped = tally.reasons(self.counts.as_dict())
    self.say(
      f'{documents["train"]:,} training documents, {size["train"]:,} bytes; '
      f'{documents["validation"]:,} for validation, '
      f'{documents["test"]:,} for test; '
      f'{sum(dropped.values()):,} dropped'
    )
    return split_D

  def _make_tokenizer(self, collected, split_D) -> tokenizer_lib.Tokenizer:
    kind, vocab_size = self.data.tokenizer, self.data.vocab_size
    if kind not in tokenizer_lib.KINDS:
      tokenizer = tokenizer_lib.load(kind)
      if tokenizer.vocab_size != vocab_size:
        raise errors.UserError(
          f'data.vocab_size={vocab_size} but the tokenizer in {kind} has '
          f'{tokenizer.vocab_size}; leave it out'
        )
      return tokenizer
    train = np.flatnonzero(split_D == SPLITS.index('train'))
    # Evenly spread documents, if there is more text than a vocabulary needs.
    every = -(-int(collected.size[train].sum()) // _TOKENIZER_BYTES) or 1
    offsets = collected.offset[train[::every]]
    # In a process of its own, which has malloc's default settings, faster for
    # SentencePiece, and which returns its memory to the system at its end.
    with workers.Pool(min(1, self.processes)) as pool:
      return pool.run(
        encoding.train_tokenizer, kind, vocab_size, self.spool, offsets
      )

  def _tokenize(self, pool, collected, split_D, tokenizer) -> dict[str, int]:
    """Writes the shards of every split and the held-out texts."""
    tokens = {}
    kept = int(collected.size[split_D >= 0].sum())
    with console.Megabytes('tokenizing', kept, shown=self.shown) as meter:
      for index, name in enumerate(SPLITS):
        numbers = np.flatnonzero(split_D == index)
        folder = self.folder / (
          'train' if name == 'train' else f'held_out/{name}'
        )
        writer = store.Writer(folder)
        offsets = collected.offset[numbers]
        batches = encoding.lines(self.spool, offsets)
        for encoded in pool.map(
          *(
            encoding.encode,
            batches,
            self.folder / 'tokenizer',
            tokenizer.digest,
          ),
          self.data.words,
          1 if pool.count else -1,
        ):
          writer.add(encoded)
          meter.advance(encoded.size)
        writer.close(collected.source[numbers])
        tokens[name] = writer.tokens
        if name in HELD_OUT:
          path = self.folder / 'held_out' / f'{name}.jsonl'
          with open(path, 'wb') as texts:
            for lines in encoding.lines(self.spool, offsets):
              texts.writelines(lines)
    return tokens

  def _cut_windows(self) -> dict[str, Any]:
    found = []
    # A pair is not continuous text: it has no suffix to score.
    if self.data.target_column is None:
      found = windows.cut(_read_jsonl(self.folder / 'held_out' / 'test.jsonl'))
    path = self.folder / 'held_out' / 'windows.jsonl'
    _write_jsonl(path, found)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {'count': len(found), 'sha256': digest}


def _known_total(sources: Sequence[sources_lib.Source]) -> int | None:
  """Bytes of text that will be read; None where files are compressed."""
  paths = [path for source in sources for path in source.inputs]
  if any(path.suffix.lower() in _OPAQUE for path in paths):
    return None
  return sum(path.stat().st_size for path in paths)


_OPAQUE = ('.gz', '.zst', '.parquet')


def _by_split(split_D, amount_D) -> tuple[dict[str, int], dict[str, int]]:
  """Number of documents and the sum of `amount_D`, by split."""
  members = {name: split_D == i for i, name in enumerate(SPLITS)}
  return (
    {name: int(member.sum()) for name, member in members.items()},
    {name: int(amount_D[member].sum()) for name, member in members.items()},
  )


def _read_jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with open(path, encoding='utf-8', newline='\n') as f:
    for line in f:
      yield json.loads(line)


def _write_jsonl(path: pathlib.Path, rows: Iterable[dict[str, Any]]):
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  files.write(path, ''.join(lines))
