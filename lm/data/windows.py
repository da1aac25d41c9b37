"""Held-out windows of text: score the second half, given the first."""

import re
from collections.abc import Iterable, Sequence
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
  texts = [(x['name'], x['text'].encode()) for x in documents]
  windows = []
  for document, place in places([len(text) for _, text in texts], count):
    name, text = texts[document]
    start = _align(text, place)
    data = text[start : _align(text, place + WINDOW_BYTES)]
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


def places(
  sizes: Iterable[int], count: int = WINDOW_COUNT
) -> list[tuple[int, int]]:
  """Where `cut` takes its windows in documents of so many bytes.

  sizes [2100 900 1024], count 2 -> (0, 0), (0, 1024)
  sizes [2100 900 1024], count 3 -> (0, 0), (0, 1024), (2, 0)

  Returns:
    Of each, the number of its document and the byte at which it starts, or
    within whose character.
  """
  whole = [
    (document, start)
    for document, size in enumerate(sizes)
    for start in range(0, size - WINDOW_BYTES + 1, WINDOW_BYTES)
  ]
  number = min(count, len(whole))
  return [whole[i * len(whole) // number] for i in range(number)]


def documents_of(
  found: Sequence[dict[str, Any]], sizes: Iterable[int]
) -> list[int] | None:
  """The number of each stored window's document: names may be there twice.

  Args:
    found: what `cut` has returned.
    sizes: bytes of each of the documents.

  Returns:
    None where the windows are not of such documents.
  """
  cut_at = places(sizes)
  # A character has at most four bytes.
  fits = len(cut_at) == len(found) and all(
    0 <= place - window['start'] < 4
    for window, (_, place) in zip(found, cut_at, strict=True)
  )
  return [document for document, _ in cut_at] if fits else None


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
