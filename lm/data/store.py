"""Tokenized documents on disk: ArrayRecord shards with random access.

A document is a 3 x n int32 array of token ids, the index of each token's word
and the byte at which the token starts in the document's text. Its last token is
EOS, a word of its own, at the text's end. Documents are cut into records of
`BLOCK` tokens, so that reading a chunk costs the same in a long document.
"""

import array
import pathlib
from collections.abc import Sequence

import grain.python as grain
import numpy as np
from array_record.python import array_record_module

from lm import errors

BLOCK = 4096
_MEND = 'remove the folder that holds it to have it prepared again'
# A shard is closed when it holds so much, before compression. Readers keep each
# shard open.
_SHARD_BYTES = 256 << 20


class Writer:
  """Writes the documents of one split into a new folder."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._lengths = array.array('q')
    self._counts_V = np.zeros(0, np.int64)
    self._writer = None
    self._shards = self._shard_bytes = 0
    directory.mkdir(parents=True)

  def add(self, ids_L: np.ndarray, word_L: np.ndarray, start_L: np.ndarray):
    """Appends a document; the arrays hold its EOS already."""
    document_3xL = np.stack([ids_L, word_L, start_L]).astype('<i4')
    length = document_3xL.shape[1]
    self._lengths.append(length)
    counts_V = np.bincount(ids_L, minlength=len(self._counts_V))
    counts_V[: len(self._counts_V)] += self._counts_V
    self._counts_V = counts_V
    for first in range(0, length, BLOCK):
      block = document_3xL[:, first : first + BLOCK]
      record = np.ascontiguousarray(block).tobytes()
      self._shard().write(record)
      self._shard_bytes += len(record)

  def close(self):
    """Finishes the last shard and writes the lengths and the ids' counts."""
    self._close_shard()
    np.save(self._directory / 'lengths.npy', np.array(self._lengths, np.int64))
    np.save(self._directory / 'counts.npy', self._counts_V)

  def _shard(self):
    if self._shard_bytes >= _SHARD_BYTES:
      self._close_shard()
    if self._writer is None:
      path = self._directory / f'{self._shards:05d}.array_record'
      self._shards, self._shard_bytes = self._shards + 1, 0
      self._writer = array_record_module.ArrayRecordWriter(
        str(path), 'group_size:1'
      )
    return self._writer

  def _close_shard(self):
    if self._writer is not None:
      self._writer.close()
      self._writer = None


class Split:
  """Random access to the documents of one split.

  lengths: int64 [documents], tokens in each, EOS counted.
  """

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    try:
      self.lengths = np.load(directory / 'lengths.npy')
    except (OSError, ValueError) as error:
      raise errors.UserError(
        f'{directory} holds no tokenized documents ({error}); {_MEND}'
      ) from None
    blocks = -(-self.lengths // BLOCK)
    self._first_record = np.concatenate([[0], np.cumsum(blocks)])
    paths: Sequence[str] = sorted(map(str, directory.glob('*.array_record')))
    self._records = grain.ArrayRecordDataSource(paths) if paths else []
    if len(self._records) != self._first_record[-1]:
      raise errors.UserError(
        f'{directory} holds {len(self._records)} records where its index '
        f'lists {self._first_record[-1]}; {_MEND}'
      )

  def read(self, document: int, start: int = 0, stop: int | None = None):
    """Tokens [start, stop) of a document.

    Returns:
      int32 [3, n]: ids, words, byte starts.
    """
    stop = int(self.lengths[document]) if stop is None else stop
    first, last = start // BLOCK, -(-stop // BLOCK)
    base = int(self._first_record[document])
    blocks = self._records.__getitems__(list(range(base + first, base + last)))
    arrays = [np.frombuffer(b, '<i4').reshape(3, -1) for b in blocks]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
    return joined[:, start - first * BLOCK : stop - first * BLOCK]

  def counts(self, vocab_size: int) -> np.ndarray:
    """How often each id occurs, EOS included; int64 [V]."""
    counts_V = np.load(self.directory / 'counts.npy')
    return np.pad(counts_V, (0, vocab_size - len(counts_V)))

  def __len__(self) -> int:
    return len(self.lengths)
