"""Lossless conversion of text to ids and back, behind one small interface.

Every tokenizer has the same ids below 526: 270 special tokens, which no text is
encoded to and which decode to no text, then the 256 bytes, which spell whatever
has no piece. The pieces learnt from text follow.
"""

import codecs
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from lm import errors, field
from lm.data import vocabulary
from lm.data.text import words
from lm.runtime import files

PAD, BOS, EOS, UNK, MASK, SEP, CLS = range(7)
SENTINELS = range(7, 263)
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_END = range(263, 267)
MODE_R, MODE_S, MODE_X = range(267, 270)
NUM_SPECIAL = 270
SPECIAL_NAMES = (
  *('<pad>', '<s>', '</s>', '<unk>', '[MASK]', '[SEP]', '[CLS]'),
  *(f'<extra_id_{i}>' for i in range(len(SENTINELS))),
  *('<fim_prefix>', '<fim_suffix>', '<fim_middle>', '<fim_end>'),
  # The modes R, S and X (Tay et al. 2022, "Mode Switching").
  *('[NLU]', '[S2S]', '[NLG]'),
)
FIRST_BYTE = NUM_SPECIAL
FIRST_PIECE = FIRST_BYTE + 256

KINDS = ('unigram', 'bpe', 'word', 'char', 'bytes')
_FORMAT = 'lm tokenizer 1'


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A vocabulary with its encoding; equal fields give equal ids.

  kind: one of KINDS.
  vocab_size: V as requested; ids from len(pieces) on are unused.
  pieces: the bytes that each id stands for, b'' for special tokens.
  model: a serialized SentencePiece model, b'' for other kinds.
  """

  kind: str
  vocab_size: int
  pieces: tuple[bytes, ...] = dataclasses.field(repr=False)
  model: bytes = dataclasses.field(default=b'', repr=False)

  @functools.cached_property
  def byte_lengths_V(self) -> np.ndarray:
    """Bytes of text that each id stands for, int32 [V]; 0 if it is no text."""
    lengths_V = np.zeros(self.vocab_size, np.int32)
    lengths_V[: len(self.pieces)] = [len(piece) for piece in self.pieces]
    lengths_V.setflags(write=False)
    return lengths_V

  def allowed_ids(self, *, end: bool, separator: bool = False) -> np.ndarray:
    """Mask of the ids that stand for text, bool [V].

    Args:
      end: whether EOS is allowed, too, since the document can end.
      separator: whether SEP is allowed, too, since the document is a pair.
    """
    allowed_V = self.byte_lengths_V > 0
    allowed_V[EOS] = end
    allowed_V[SEP] = separator
    return allowed_V

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of everything that the ids depend on."""
    head = json.dumps([_FORMAT, self.kind, self.vocab_size])
    parts = (head.encode(), *self.pieces, self.model)
    digest = hashlib.sha256()
    for part in parts:
      digest.update(len(part).to_bytes(8, 'little') + part)
    return digest.hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text`, int32, none of them special; their bytes spell `text`.

    Raises:
      UnicodeEncodeError: for a lone surrogate, which is not Unicode text.
    """
    return self.encode_batch([text])[0]

  def encode_batch(
    self, texts: Sequence[str], *, threads: int = -1
  ) -> list[np.ndarray]:
    """Encodes each text; `threads` are SentencePiece's, -1: one per core."""
    if self.model:
      return self._encode_sentencepiece(texts, threads)
    if self.kind == 'bytes':
      return [_byte_ids(text) for text in texts]
    return [self._encode_pieces(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; special and unused ids add none.

    Bytes that form no character are skipped.
    """
    return self.decode_bytes(ids).decode(errors='ignore')

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """The bytes of `ids`, whether or not they form characters."""
    ids = np.asarray(ids, np.int64).reshape(-1).tolist()
    known = range(len(self.pieces))
    return b''.join(self.pieces[i] for i in ids if i in known)

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and, for some kinds, `sentencepiece.model`.

    Each file is replaced atomically. `load` checks that the two belong together
    by the digest in `tokenizer.json`, which is written last.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if self.model:
      files.write(directory / 'sentencepiece.model', self.model)
    description = {
      'format': _FORMAT,
      'kind': self.kind,
      'vocab_size': self.vocab_size,
      'digest': self.digest,
      'pieces': [piece.decode() for piece in self.pieces[FIRST_PIECE:]],
    }
    content = json.dumps(description, ensure_ascii=False, indent=0)
    files.write(directory / 'tokenizer.json', content.encode())

  def __reduce__(self):
    # Without cached properties: each worker builds its own processor.
    return Tokenizer, (self.kind, self.vocab_size, self.pieces, self.model)

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.model)

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    learnt = self.pieces[FIRST_PIECE:]
    return {piece.decode(): FIRST_PIECE + i for i, piece in enumerate(learnt)}

  def _encode_pieces(self, text: str) -> np.ndarray:
    ids = []
    for piece in text if self.kind == 'char' else words.split(text):
      known = self._ids.get(piece)
      if known is None:
        ids.extend(FIRST_BYTE + byte for byte in piece.encode())
      else:
        ids.append(known)
    return np.array(ids, np.int32)

  def _encode_sentencepiece(
    self, texts: Sequence[str], threads: int
  ) -> list[np.ndarray]:
    # SentencePiece reads U+2581 as a blank, so it is never given one.
    runs_by_text = [text.split(vocabulary.BLANK) for text in texts]
    # As bytes: the error that it raises for a lone surrogate is obscure.
    runs = [run.encode() for runs in runs_by_text for run in runs]
    ids = []
    if runs:
      ids = self._processor.encode(runs, out_type=int, num_threads=threads)
    encoded = iter(ids)
    mark = _byte_ids(vocabulary.BLANK)
    results = []
    for runs in runs_by_text:
      parts = [np.array(next(encoded), np.int32)]
      for _ in runs[1:]:
        parts += [mark, np.array(next(encoded), np.int32)]
      results.append(np.concatenate(parts) if len(parts) > 1 else parts[0])
    return results


def train(kind: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
  """Learns a vocabulary of at most `vocab_size` ids from `texts`.

  If the text has more characters than the vocabulary can hold, the rarest are
  spelt in bytes: at most half of the learnt pieces are single characters, or
  all of them for 'char'. The result is a function of the arguments alone.
  `texts` is held in memory for 'unigram' and 'bpe', and is not read for
  'bytes'.

  Raises:
    UserError: for a kind that is not in KINDS, too small a vocabulary, or a
      text from which SentencePiece learns nothing.
  """
  check_vocab_size(kind, vocab_size)
  limit = vocab_size - FIRST_PIECE
  model, learnt = b'', []
  if kind == 'word':
    learnt = vocabulary.learn_words(texts, limit)
  elif kind == 'char':
    learnt = vocabulary.learn_characters(texts, limit)
  elif kind != 'bytes':
    model = vocabulary.train_sentencepiece(kind, texts, limit, SPECIAL_NAMES)
    learnt = _learnt_pieces(model)
  return Tokenizer(kind, vocab_size, _FIXED_PIECES + _utf8(learnt), model)


def check_vocab_size(kind: str, vocab_size: int) -> None:
  """Raises UserError for an unknown kind or too small a vocabulary."""
  if kind not in KINDS:
    raise errors.UserError(
      f'data.tokenizer={kind!r} is unknown; choose from {", ".join(KINDS)}, or '
      f'give the path of a saved tokenizer'
    )
  least = FIRST_PIECE if kind == 'bytes' else FIRST_PIECE + 2
  if vocab_size < least:
    raise errors.UserError(
      f'data.vocab_size={vocab_size} is too small for {NUM_SPECIAL} special '
      f'tokens, 256 bytes and a text; data.tokenizer={kind!r} needs at least '
      f'{least}'
    )


def _check_tokenizer(config):
  name = config.data.tokenizer
  if name not in KINDS and not os.path.exists(name):
    raise errors.UserError(
      f"unknown data.tokenizer='{name}'; choose from {', '.join(KINDS)}, or "
      'give the path of a saved tokenizer'
    )


def _vocab_size(config) -> int:
  name = config.data.tokenizer
  if name == 'bytes':
    return FIRST_PIECE
  return 8192 if name in KINDS else load(name).vocab_size


def _check_vocab_size(config):
  if config.data.tokenizer in KINDS and config.data.vocab_size is not None:
    check_vocab_size(config.data.tokenizer, config.data.vocab_size)


FIELDS = field.section(
  tokenizer=field.Field(
    'unigram',
    'unigram or bpe (SentencePiece), word, char, bytes, or the folder of a '
    'saved tokenizer.',
    check=_check_tokenizer,
  ),
  vocab_size=field.Field(
    None,
    "Size of the vocabulary, special tokens included; the model's V exactly.",
    kind=int,
    none="526 for bytes, the tokenizer's own for a path, else 8192",
    derive=_vocab_size,
    check=_check_vocab_size,
  ),
)


def load(directory: str | os.PathLike) -> Tokenizer:
  """Reads a tokenizer that `save` wrote.

  Raises:
    UserError: the folder is missing, holds no tokenizer or is damaged.
  """
  directory = pathlib.Path(directory)
  field = f'data.tokenizer={str(directory)!r}'
  mend = f'give a folder that a tokenizer was saved to or {", ".join(KINDS)}'
  try:
    description = json.loads((directory / 'tokenizer.json').read_bytes())
  except OSError as error:
    raise errors.UserError(
      f'{field} has no readable tokenizer.json ({error.strerror}); {mend}'
    ) from error
  except ValueError as error:
    raise errors.UserError(
      f'{field} has a tokenizer.json that is not JSON ({error}); {mend}'
    ) from error
  if not isinstance(description, dict) or description.get('format') != _FORMAT:
    raise errors.UserError(
      f'{field} has a tokenizer.json that was not written here (its "format" '
      f'is not {_FORMAT!r}); {mend}'
    )
  try:
    model = b''
    if description['kind'] in ('unigram', 'bpe'):
      model = (directory / 'sentencepiece.model').read_bytes()
    pieces = _FIXED_PIECES + _utf8(description['pieces'])
    loaded = Tokenizer(
      description['kind'], description['vocab_size'], pieces, model
    )
    intact = loaded.digest == description['digest']
  except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f'{field} is damaged ({type(error).__name__}: {error}); {mend}'
    ) from error
  if not intact:
    raise errors.UserError(
      f'{field} is damaged (its files do not match their digest); {mend}'
    )
  return loaded


class StreamDecoder:
  """Decodes ids as they arrive, in whole characters.

  The joined results of `feed` and `flush` equal `decode` of all ids.

  dropped_bytes: number of bytes so far that form no character.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder('utf-8')('ignore')
    self._bytes_fed = 0
    self._bytes_returned = 0
    self.dropped_bytes = 0

  def feed(self, ids: Iterable[int]) -> str:
    """The characters that `ids` complete."""
    return self._decode(self._tokenizer.decode_bytes(ids), final=False)

  def flush(self) -> str:
    """Ends the text and drops an incomplete character at its end."""
    return self._decode(b'', final=True)

  def _decode(self, data: bytes, *, final: bool) -> str:
    text = self._decoder.decode(data, final)
    waiting = len(self._decoder.getstate()[0])
    self._bytes_fed += len(data)
    self._bytes_returned += len(text.encode())
    self.dropped_bytes = self._bytes_fed - self._bytes_returned - waiting
    return text


_FIXED_PIECES = (b'',) * NUM_SPECIAL + tuple(bytes([i]) for i in range(256))


def _byte_ids(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST_BYTE


def _utf8(learnt: Sequence[str]) -> tuple[bytes, ...]:
  return tuple(piece.encode() for piece in learnt)


def _learnt_pieces(model: bytes) -> list[str]:
  """The text pieces of a SentencePiece model, blanks spelt as blanks."""
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  spelt = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
  in_bytes = [f'<0x{byte:02X}>' for byte in range(256)]
  if spelt[:FIRST_PIECE] != [*SPECIAL_NAMES, *in_bytes]:
    raise AssertionError('SentencePiece placed the special ids elsewhere')
  if vocabulary.BLANK not in spelt:
    raise AssertionError('SentencePiece has no piece for the blank')
  return [piece.replace(vocabulary.BLANK, ' ') for piece in spelt[FIRST_PIECE:]]
