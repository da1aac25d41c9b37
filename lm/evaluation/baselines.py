"""Baselines without a neural network: bits per byte of held-out text."""

import json
import logging
import lzma
import pathlib
import threading

import numpy as np

from lm.data import prepare, store, tokenizer as tokenizer_lib
from lm.runtime import files

# Bytes of the dictionary of `xz -9`; earlier training text has no effect.
XZ_DICTIONARY = 64 << 20


def xz(texts: list[bytes]) -> float:
  """Bits per byte of `xz -9` on the concatenated texts."""
  data = b''.join(texts)
  return 8 * len(_compress(data)) / len(data)


def xz_given_training(training: bytes, texts: list[bytes]) -> float:
  """Bits per byte that the texts add to `xz -9` of the training text.

  Args:
    training: training text, of which the last `XZ_DICTIONARY` bytes are used.
    texts: held-out texts, appended to it.
  """
  data = b''.join(texts)
  training = training[-(XZ_DICTIONARY - len(data)) :]
  added = len(_compress(training + data)) - len(_compress(training))
  return 8 * added / len(data)


def _compress(data: bytes) -> bytes:
  return lzma.compress(data, preset=9)


def unigram(
  train: store.Split, held_out: store.Split, tokenizer: tokenizer_lib.Tokenizer
) -> float:
  """Bits per byte of a unigram model over pieces, with add-one smoothing.

  The vocabulary is every piece of text, and EOS, whose bits count as they do
  for the model.
  """
  possible_V = tokenizer.allowed_ids(end=True)
  counts_V = train.counts(tokenizer.vocab_size) + possible_V
  bits_V = np.log2(counts_V.sum()) - np.log2(np.maximum(counts_V, 1))
  scored_V = held_out.counts(tokenizer.vocab_size)
  return float(scored_V @ bits_V / (scored_V @ tokenizer.byte_lengths_V))


def training_text(
  train: store.Split,
  tokenizer: tokenizer_lib.Tokenizer,
  limit: int = XZ_DICTIONARY,
) -> bytes:
  """The last `limit` bytes of the training split, decoded from its ids."""
  parts, size = [], 0
  for document in reversed(range(len(train))):
    part = tokenizer.decode_bytes(train.read(document)[0])
    parts.append(part)
    size += len(part)
    if size >= limit:
      break
  return b''.join(reversed(parts))[-limit:]


def compute(prepared: prepare.Prepared) -> dict[str, float]:
  """Computes all baselines, by their names in metrics.jsonl."""
  train, test = prepared.train(), prepared.held_out('test')
  tokenizer = prepared.tokenizer()
  texts = [tokenizer.decode_bytes(test.read(d)[0]) for d in range(len(test))]
  return {
    'xz_bits_per_byte': xz(texts),
    'xz_given_training_bits_per_byte': xz_given_training(
      training_text(train, tokenizer), texts
    ),
    'unigram_bits_per_byte': unigram(train, test, tokenizer),
  }


class Task:
  """Computes the baselines in a background thread, once for prepared data."""

  def __init__(self, prepared: prepare.Prepared):
    self._prepared = prepared
    self._path = prepared.directory / 'baselines.json'
    self._figures = read(self._path)
    self._error: Exception | None = None
    # A daemon thread, so that the process can exit while xz runs.
    self._thread = threading.Thread(target=self._run, daemon=True)
    if not self._figures:
      self._thread.start()

  def result(self) -> dict[str, float]:
    """Waits for the baselines and returns them."""
    if self._thread.ident is not None:
      self._thread.join()
    if self._error:
      raise self._error
    return self._figures

  def _run(self):
    try:
      self._figures = compute(self._prepared)
    except Exception as error:
      self._error = error
      return
    try:
      files.write_json(self._path, self._figures)
    except OSError as error:  # shared data may be read-only
      logging.warning('%s cannot be saved: %s', self._path, error)


def read(path: pathlib.Path) -> dict[str, float]:
  """Reads a `baselines.json`; returns {} if it does not exist."""
  return json.loads(path.read_text()) if path.exists() else {}
