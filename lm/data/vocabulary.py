"""The pieces of a vocabulary: learnt by counting or by training.

Control characters, line ends among them, are never part of a piece: they stay
bytes, so that no piece crosses a line and each line end is one token.
"""

import collections
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from lm import errors
from lm.data.text import words

# SentencePiece silently drops longer lines.
LINE_BYTES = 4192
# The result must not depend on the machine.
NUM_THREADS = 4
# Character that SentencePiece spells a blank with, and all that it reserves.
BLANK = '\u2581'
RESERVED = {BLANK, '\u2585'}


def learn_words(texts: Iterable[str], limit: int) -> list[str]:
  """The `limit` most frequent words, at most half of them single characters.

  Counted here, since SentencePiece's word model is not lossless: it cuts at
  blanks only and spells the blank before an unknown word as U+2581, so that
  'the zebra' is decoded as 'the▁zebra'.
  """
  counts = collections.Counter()
  for text in texts:
    counts.update(words.split(text))
  ranked = [word for word in _ranked(counts) if all(map(_has_piece, word))]
  single = [word for word in ranked if len(word) == 1][: _half(limit)]
  longer = [word for word in ranked if len(word) > 1]
  kept = {*single, *longer[: limit - len(single)]}
  return [word for word in ranked if word in kept]


def learn_characters(texts: Iterable[str], limit: int) -> list[str]:
  """The `limit` most frequent characters."""
  counts = collections.Counter()
  for text in texts:
    counts.update(text)
  return [char for char in _ranked(counts) if _has_piece(char)][:limit]


def train_sentencepiece(
  kind: str, texts: Iterable[str], limit: int, specials: Sequence[str]
) -> bytes:
  """A serialized SentencePiece model: specials, 256 bytes, `limit` pieces.

  The characters of which pieces may consist are chosen here, at most half as
  many as pieces, and the text is cut at all others; with `character_coverage`
  instead, ties and rounding make the trainer fail.

  Raises:
    UserError: SentencePiece finds no vocabulary in the text.
  """
  texts = list(texts)
  kept = [char for char in learn_characters(texts, limit) if char != ' ']
  if not kept:
    raise errors.UserError(
      f'data.tokenizer={kind!r} found no text to learn from; give it text '
      f"(data.source, data.path) or use data.tokenizer='bytes'"
    )
  # A blank without a piece would be spelt in the bytes of U+2581.
  kept = [' ', *kept[: _half(limit) - 1]]
  others = re.compile(f'[^{re.escape("".join(kept))}]+')
  runs = (run for text in texts for run in others.split(text))
  lines = (line for run in runs for line in cut(run, LINE_BYTES - 1))
  pad, bos, eos, unk, *controls = specials
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([' '], lines),
      model_writer=model,
      model_type=kind,
      vocab_size=len(specials) + 256 + limit,
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      pad_piece=pad,
      bos_piece=bos,
      eos_piece=eos,
      unk_piece=unk,
      control_symbols=controls,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      byte_fallback=True,
      character_coverage=1.0,
      hard_vocab_limit=False,
      num_threads=NUM_THREADS,
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = ' '.join(str(error).split())
    raise errors.UserError(
      f'data.tokenizer={kind!r} with data.vocab_size='
      f'{len(specials) + 256 + limit} could not be trained on this text: '
      f"{reason}; give more text or use data.tokenizer='bytes'"
    ) from error
  return model.getvalue()


def cut(text: str, limit: int) -> Iterator[str]:
  """Pieces of at most `limit` bytes, cut before a blank, else anywhere.

  Joined they are `text`; no character is ever cut. `limit` is at least 4.
  """
  data = text.encode()
  start = 0
  while len(data) - start > limit:
    end = start + limit
    while data[end] & 0xC0 == 0x80:
      end -= 1
    blank = data.rfind(b' ', start + 1, end + 1)
    end = end if blank < 0 else blank
    yield data[start:end].decode()
    start = end
  if start < len(data):
    yield data[start:].decode()


def _ranked(counts: collections.Counter) -> list[str]:
  """Most frequent first; ties in order of code points."""
  return sorted(counts, key=lambda piece: (-counts[piece], piece))


def _half(limit: int) -> int:
  return max(1, limit // 2)


def _has_piece(char: str) -> bool:
  return char not in RESERVED and unicodedata.category(char) not in _NO_PIECE


# Control characters and lone surrogates.
_NO_PIECE = {'Cc', 'Cs'}
