"""Prompts with marks, [MASK] or <extra_id_0>, and the text around the marks."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from lm import errors
from lm.data import tokenizer as tokenizer_lib

MASK = tokenizer_lib.SPECIAL_NAMES[tokenizer_lib.MASK]
SENTINEL = tokenizer_lib.SPECIAL_NAMES[tokenizer_lib.SENTINELS[0]]
_NUMBERED = r'<extra_id_(\d+)>'
_MARK = re.compile(f'{re.escape(MASK)}|{_NUMBERED}')
_SPACED_MARK = re.compile(f' ?(?:{_MARK.pattern})')


def mark(prompt: str) -> str:
  """The kind of marks in a prompt: MASK, SENTINEL, or '' without marks.

  Raises:
    UserError: the prompt has both.
  """
  masked, numbered = MASK in prompt, bool(re.search(_NUMBERED, prompt))
  if masked and numbered:
    raise errors.UserError(
      f'the prompt has both {MASK} and {SENTINEL}; mark all gaps with the one '
      'or with the other'
    )
  return MASK if masked else SENTINEL if numbered else ''


def is_marked(text: str) -> bool:
  """Whether a text contains marks."""
  return bool(_MARK.search(text))


def encode(prompt: str, tokenizer: tokenizer_lib.Tokenizer) -> np.ndarray:
  """Tokenizes a prompt, with the special ids of its marks.

  Each text between marks is tokenized alone. In most tokenizers the piece of a
  word includes the space before it: the answer to 'is [MASK].' is ' Paris'. If
  the space were kept, the answer would have to be another piece, 'Paris', which
  never follows a space in text. So if pieces begin with spaces, one space
  before a mark is removed; the prompts 'is [MASK].' and 'is[MASK].' are
  equivalent.

  'is [MASK].' with pieces such as ' Paris'   'is' MASK '.'
  'is [MASK].' with single characters         'is' ' ' MASK '.'

  Raises:
    UserError: the number of a sentinel is too large.
  """
  parts, start = [], 0
  for found in _find(prompt, tokenizer):
    parts += [
      tokenizer.encode(prompt[start : found.start()]),
      [_special(found)],
    ]
    start = found.end()
  parts.append(tokenizer.encode(prompt[start:]))
  return np.concatenate(parts).astype(np.int32)


def marks(prompt: str, tokenizer: tokenizer_lib.Tokenizer) -> list[str]:
  """The marks of a prompt, each with the space that `encode` removes.

  'is [MASK].' with pieces such as ' Paris'   [' [MASK]']
  """
  return [found[0] for found in _find(prompt, tokenizer)]


def _find(
  prompt: str, tokenizer: tokenizer_lib.Tokenizer
) -> Iterator[re.Match]:
  spaced = any(len(x) > 1 and x.startswith(b' ') for x in tokenizer.pieces)
  return (_SPACED_MARK if spaced else _MARK).finditer(prompt)


def _special(found: re.Match) -> int:
  if found[1] is None:
    return tokenizer_lib.MASK
  number, count = int(found[1]), len(tokenizer_lib.SENTINELS)
  if number >= count:
    raise errors.UserError(
      f'the prompt has {found[0].strip()}, but the last of the {count} '
      f'sentinels is <extra_id_{count - 1}>; number them from 0'
    )
  return tokenizer_lib.SENTINELS[number]


def is_mark(ids_L: np.ndarray) -> np.ndarray:
  """Positions of the marks in ids that `encode` returned; bool [L]."""
  return ids_L < tokenizer_lib.NUM_SPECIAL


def splice(
  ids_L: np.ndarray,
  fillings: Sequence[bytes],
  tokenizer: tokenizer_lib.Tokenizer,
) -> tuple[str, int]:
  """Replaces each mark by its filling.

  Returns:
    The text, and the number of bytes dropped because they form no character.
  """
  remaining, parts = iter(fillings), []
  for i in ids_L.tolist():
    special = i < tokenizer_lib.NUM_SPECIAL
    parts.append(next(remaining) if special else tokenizer.pieces[i])
  data = b''.join(parts)
  text = data.decode(errors='ignore')
  return text, len(data) - len(text.encode())
