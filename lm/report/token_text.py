"""Tokens and texts as a person can read them: nothing in them is invisible."""

import itertools
import unicodedata
from collections.abc import Iterable, Mapping

import rich.cells

from lm.data import tokenizer as tokenizer_lib

_SHOWN = {' ': '␣', '\n': '↵', '\t': '⇥'}
_IN_A_TEXT = {**_SHOWN, ' ': ' ', '\n': '↵\n'}
# Controls, formats, blanks, line ends, and what is no character at all: they
# are invisible, move what stands beside them, or command a terminal.
_ESCAPED = ('Cc', 'Cf', 'Cn', 'Co', 'Cs', 'Zl', 'Zp', 'Zs')


def spell(id_: int, tokenizer: tokenizer_lib.Tokenizer) -> str:
  """A token: text as `visible`, special ones by name, else its bytes.

  A part of a character is in hexadecimal, as \\xe4; an id that no piece has, as
  <unused 812>.
  """
  if id_ < tokenizer_lib.NUM_SPECIAL:
    return tokenizer_lib.SPECIAL_NAMES[id_]
  if id_ >= len(tokenizer.pieces):
    return f'<unused {id_}>'
  text = visible(tokenizer.pieces[id_].decode(errors='backslashreplace'))
  # On its own it would be drawn over the token before it.
  return f'◌{text}' if unicodedata.category(text[0])[0] == 'M' else text


def visible(text: str) -> str:
  """Blanks as ␣, line ends as ↵, tabs as ⇥, other invisible ones escaped."""
  return _replace(text, _SHOWN)


def original(ids: Iterable[int], tokenizer: tokenizer_lib.Tokenizer) -> str:
  """The text of ids: blanks stay, and lines end behind their ↵.

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
  """At most `width` cells of a terminal; … where something is left out."""
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
