"""The second half of preparation: a tokenizer, and ids for the shards.

Both read the spool that `collect.py` wrote, and run in worker processes if
there are any.
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from lm.data import store, tokenizer as tokenizer_lib
from lm.data.text import segmentation, words

# Size of the batches of text that workers tokenize.
_BATCH_BYTES = 1 << 20


def lines(spool: pathlib.Path, offsets: Sequence[int]) -> Iterator[list[bytes]]:
  """Lists of lines of the spool, of about `_BATCH_BYTES` each."""
  group, size = [], 0
  with open(spool, 'rb') as f:
    for offset in offsets:
      f.seek(offset)
      group.append(f.readline())
      size += len(group[-1])
      if size >= _BATCH_BYTES:
        yield group
        group, size = [], 0
  if group:
    yield group


def train_tokenizer(
  kind: str, vocab_size: int, spool: pathlib.Path, offsets: Sequence[int]
) -> tokenizer_lib.Tokenizer:
  """Trains a tokenizer on the documents, or pairs, at `offsets`."""
  texts = (
    text
    for group in lines(spool, offsets)
    for line in group
    for text in _sides(line)
  )
  return tokenizer_lib.train(kind, vocab_size, texts)


def encode(
  group: list[bytes],
  folder: pathlib.Path,
  digest: str,
  words_kind: str = 'characters',
  threads: int = -1,
) -> store.Encoded:
  """Encodes lines of the spool as the records of a shard.

  A text ends in EOS; a pair is source, SEP, target, EOS. Both marks are words
  of their own and have no bytes.

  Args:
    words_kind: one of `segmentation.WORDS`.
    threads: number of SentencePiece's threads; -1: one per core.
  """
  tokenizer, segment = (
    _load_tokenizer(folder, digest),
    segmentation.make(words_kind),
  )
  sides = [_sides(line) for line in group]
  texts = [text for pair in sides for text in pair]
  ids = iter(tokenizer.encode_batch(texts, threads=threads))
  documents, input_lengths = [], []
  for texts in sides:
    marks = (tokenizer_lib.SEP, tokenizer_lib.EOS)[-len(texts) :]
    parts = [
      _part(tokenizer, text, next(ids), mark, segment)
      for text, mark in zip(texts, marks, strict=True)
    ]
    if len(parts) == 2:
      source_3xL, target_3xL = parts
      input_lengths.append(source_3xL.shape[1])
      # Numbers of words and bytes continue those of the source.
      target_3xL[1] += source_3xL[1, -1] + 1
      target_3xL[2] += source_3xL[2, -1]
    documents.append(np.concatenate(parts, axis=1))
  return store.encode(documents, input_lengths)


def _sides(line: bytes) -> list[str]:
  """The text of a document, or the source and the target of a pair."""
  document = json.loads(line)
  return [document[x] for x in ('text', 'target') if x in document]


def _part(
  tokenizer, text: str, ids: np.ndarray, mark: int, segment
) -> np.ndarray:
  """Ids, words and byte starts of a text and of the mark behind it; [3, n]."""
  ends = np.cumsum(tokenizer.byte_lengths_V[ids], dtype=np.int64)
  starts = np.concatenate([[0], ends])
  word = words.word_index(text, starts[:-1], segment)
  return np.stack([np.append(ids, mark), np.append(word, word[-1] + 1), starts])


@functools.lru_cache(maxsize=1)
def _load_tokenizer(
  folder: pathlib.Path, digest: str
) -> tokenizer_lib.Tokenizer:
  del digest  # Part of the cache key: folders can be reused for other data.
  return tokenizer_lib.load(folder)
