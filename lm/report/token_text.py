"""Readable tokens and texts, with invisible characters made visible."""

import itertools
import unicodedata
from collections.abc import Iterable, Mapping

import rich.cells

from lm.data import tokenizer as tokenizer_lib

_SHOWN = {' ': '␣', '\n': '↵', '\t': '⇥'}
_IN_A_TEXT = {**_SHOWN, ' ': ' ', '\n': '↵\n'}
# Controls, formats, spaces, line ends and code points without a character. They
# are invisible, move their neighbours, or control a terminal.
_ESCAPED = ('Cc', 'Cf', 'Cn', 'Co', 'Cs', 'Zl', 'Zp', 'Zs')


def spell(id_: int, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Text of a token: `visible` text, or the name of a special token.

  Bytes of a partial character are written as \\xe4, an id without a piece as
  <unused 812>.
  """
  if id_ < tokenizer_lib.NUM_SPECIAL:
    return tokenizer_lib.SPECIAL_NAMES[id_]
  if id_ >= len(tokenizer.pieces):
    return f'<unused {id_}>'
  text = visible(tokenizer.pieces[id_].decode(errors='backslashreplace'))
  # A lone combining mark would be drawn over the token before it.
  return f'◌{text}' if unicodedata.category(text[0])[0] == 'M' else text


def visible(text: str) -> str:
  """Writes spaces as ␣, line ends as ↵, tabs as ⇥, and escapes the rest."""
  return _replace(text, _SHOWN)


def original(ids: Iterable[int], tokenizer: tokenizer_lib.Tokenizer) -> str:
  """Decodes ids to readable text: spaces are kept, and lines end after a ↵.

  Special tokens are named; bytes that form no character are in hexadecimal.
  """
  parts = []
  for special, run in itertools.groupby(ids, _is_special):
    if special:
      parts += [tokenizer_lib.SPECIAL_NAMES[id_] for id_ in run]
    else:
      text = tokenizer.decode_bytes(list(run)).decode(errors='backslashreplace')
      parts.append(_replace(text, _IN_A_TEXT))
  return ''.join(parts)


def cut(text: str, width: int) -> str:
  """Truncates a text to `width` cells of a terminal, marked with …."""
  if rich.cells.cell_len(text) <= width:
    return text
  return rich.cells.set_cell_size(text, max(width - 1, 0)).rstrip() + '…'


def _replace(text: str, shown: Mapping[str, str]) -> str:
  return ''.join(shown.get(char) or _escape(char) for char in text)


def _is_special(id_: int) -> bool:
  return id_ < tokenizer_lib.NUM_SPECIAL


def _escape(char: str) -> str:
  if unicodedata.category(char) not in _ESCAPED:
    return char
  code = ord(char)
  return f'\\u{code:04x}' if code < 0x10000 else f'\\U{code:08x}'
