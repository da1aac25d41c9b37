"""Held-out windows of text: score the second half, given the first."""

import re
from collections.abc import Iterable
from typing import Any

WINDOW_BYTES = 1024
WINDOW_COUNT = 200
# How far from the middle white space is looked for, in bytes.
_REACH = 64


def cut(
  documents: Iterable[dict[str, str]], count: int = WINDOW_COUNT
) -> list[dict[str, Any]]:
  """Windows of `WINDOW_BYTES`, spread evenly over the documents.

  No window holds a document's end or start within it, and none overlaps
  another. Each is cut near its middle, at white space that belongs to the
  second half; where there is none, as in Chinese, at a character.

  Args:
    documents: {'name', 'text'} each.

  Returns:
    {'document', 'start' (byte), 'context', 'scored'} each, at most `count`;
    fewer when the text is short.
  """
  whole = []
  for document in documents:
    data = document['text'].encode()
    for start in range(0, len(data) - WINDOW_BYTES + 1, WINDOW_BYTES):
      first, last = _align(data, start), _align(data, start + WINDOW_BYTES)
      whole.append((document['name'], first, data[first:last]))
  number = min(count, len(whole))
  chosen = [whole[i * len(whole) // number] for i in range(number)]
  windows = []
  for name, start, data in chosen:
    middle = _middle(data)
    windows.append(
      {
        'document': name,
        'start': start,
        'context': data[:middle].decode(),
        'scored': data[middle:].decode(),
      }
    )
  return windows


def _align(data: bytes, place: int) -> int:
  """The start of the character that byte `place` belongs to."""
  while place < len(data) and data[place] & 0xC0 == 0x80:
    place -= 1
  return place


def _middle(data: bytes) -> int:
  """Where the second half starts."""
  middle = len(data) // 2
  low = max(1, middle - _REACH)
  near = data[low : middle + _REACH]
  blanks = [low + m.start() for m in re.finditer(rb'\s+', near)]
  if not blanks:
    return _align(data, middle)
  return min(blanks, key=lambda place: abs(place - middle))
