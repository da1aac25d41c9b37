"""Tokenized documents on disk: ArrayRecord shards with random access.

A document is a 3 x n int32 array of token ids, the index of each token's word
and the byte at which the token starts in the document's text. Its last token is
EOS, a word of its own, at the text's end. A pair is one document, see
`encoding.encode`, and the number of its tokens up to SEP, which ends the
source, is stored, too. Documents are cut into records of `BLOCK` tokens, so
that reading a chunk costs the same in a long document.
"""

import array
import dataclasses
import pathlib
from collections.abc import Sequence

import grain.python as grain
import numpy as np
from array_record.python import array_record_module

from lm import errors

BLOCK = 4096
_MEND = 'remove the folder that holds it to have it prepared again'
# Size, before compression, at which a shard is closed. Readers keep every shard
# open.
_SHARD_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Documents ready to be written.

  records: the blocks of all documents, in order.
  lengths: tokens of each document.
  counts_V: number of occurrences of each id.
  size: bytes of text.
  input_lengths: tokens of each pair's source, SEP counted; [] without pairs.
  """

  records: list[bytes]
  lengths: list[int]
  counts_V: np.ndarray
  size: int
  input_lengths: Sequence[int] = ()


def encode(
  documents: Sequence[np.ndarray], input_lengths: Sequence[int] = ()
) -> Encoded:
  """Cuts documents, each [3, n] with its EOS, into records."""
  records = []
  for document_3xL in documents:
    document_3xL = document_3xL.astype('<i4')
    for first in range(0, document_3xL.shape[1], BLOCK):
      block = document_3xL[:, first : first + BLOCK]
      records.append(np.ascontiguousarray(block).tobytes())
  return Encoded(
    records=records,
    lengths=[document.shape[1] for document in documents],
    counts_V=np.bincount(np.concatenate([d[0] for d in documents])),
    size=int(sum(document[2, -1] for document in documents)),
    input_lengths=input_lengths,
  )


class Writer:
  """Writes the documents of one split into a new folder."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._lengths, self._input_lengths = array.array('q'), array.array('q')
    self._counts_V = np.zeros(0, np.int64)
    self._writer = None
    self._shards = self._shard_bytes = 0
    self.tokens = 0
    directory.mkdir(parents=True)

  def add(self, encoded: Encoded):
    """Appends documents."""
    self._lengths.extend(encoded.lengths)
    self._input_lengths.extend(encoded.input_lengths)
    self.tokens += sum(encoded.lengths)
    size = max(len(self._counts_V), len(encoded.counts_V))
    self._counts_V = sum(
      np.pad(counts_V, (0, size - len(counts_V)))
      for counts_V in (self._counts_V, encoded.counts_V)
    )
    for record in encoded.records:
      self._shard().write(record)
      self._shard_bytes += len(record)

  def close(self, sources: np.ndarray):
    """Closes the last shard and writes lengths, sources and counts of ids.

    Args:
      sources: number of the source of each document.
    """
    self._close_shard()
    np.save(self._directory / 'lengths.npy', np.array(self._lengths, np.int64))
    np.save(self._directory / 'sources.npy', np.asarray(sources, np.int16))
    np.save(self._directory / 'counts.npy', self._counts_V)
    if self._input_lengths:
      inputs = np.array(self._input_lengths, np.int64)
      np.save(self._directory / 'input_lengths.npy', inputs)

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

  lengths: int64 [documents], tokens of each, EOS counted.
  sources: int16 [documents], number of the source that each comes from.
  input_lengths: int64 [documents], tokens of each pair's source, SEP counted;
    None if the documents are no pairs.
  """

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    try:
      self.lengths = np.load(directory / 'lengths.npy')
      self.sources = np.load(directory / 'sources.npy')
      inputs = directory / 'input_lengths.npy'
      self.input_lengths = np.load(inputs) if inputs.exists() else None
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
      int32 [3, n]: ids, words, byte starts; may be a read-only view.
    """
    stop = int(self.lengths[document]) if stop is None else stop
    first, last = start // BLOCK, -(-stop // BLOCK)
    base = int(self._first_record[document])
    # One by one: to read several at once, ArrayRecord starts threads each time.
    blocks = [self._records[i] for i in range(base + first, base + last)]
    arrays = [np.frombuffer(b, '<i4').reshape(3, -1) for b in blocks]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
    return joined[:, start - first * BLOCK : stop - first * BLOCK]

  def sizes(self) -> np.ndarray:
    """Bytes of text of each document; int64 [documents]."""
    # Its last token is EOS, which starts at the text's end.
    ends = [
      self.read(document, int(n) - 1, int(n))[2, 0]
      for document, n in enumerate(self.lengths)
    ]
    return np.array(ends, np.int64)

  def counts(self, vocab_size: int) -> np.ndarray:
    """Number of occurrences of each id, EOS included; int64 [V]."""
    counts_V = np.load(self.directory / 'counts.npy')
    return np.pad(counts_V, (0, vocab_size - len(counts_V)))

  def __len__(self) -> int:
    return len(self.lengths)
