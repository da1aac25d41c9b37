"""Held-out windows of text: score the second half, given the first."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

WINDOW_BYTES = 1024
WINDOW_COUNT = 200
# White space is searched for up to this far from the middle, in bytes.
_REACH = 64


def cut(
  documents: Iterable[dict[str, str]], count: int = WINDOW_COUNT
) -> list[dict[str, Any]]:
  """Windows of `WINDOW_BYTES`, spread evenly over the documents.

  Each window lies within one document, and no two overlap. Each is divided near
  its middle, before white space; where there is none, as in Chinese, before a
  character.

  Args:
    documents: dicts with 'name' and 'text'.

  Returns:
    Dicts with 'document' (a name), 'start' (a byte), 'context' and 'scored';
    `count` of them, or fewer if the text is short.
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
  """Places of the windows that `cut` cuts from documents of given sizes.

  sizes [2100 900 1024], count 2 -> (0, 0), (0, 1024)
  sizes [2100 900 1024], count 3 -> (0, 0), (0, 1024), (2, 0)

  Args:
    sizes: bytes of each document.

  Returns:
    (document, byte) of each window: the number of its document and the byte at
    which it starts, or a byte of its first character.
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
  """The number of each window's document; names need not be unique.

  Args:
    found: windows that `cut` returned.
    sizes: bytes of each document.

  Returns:
    None if the windows are not those of such documents.
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
  """The byte at which the second half starts."""
  middle = len(data) // 2
  low = max(1, middle - _REACH)
  near = data[low : middle + _REACH]
  blanks = [low + m.start() for m in re.finditer(rb'\s+', near)]
  if not blanks:
    return _align(data, middle)
  return min(blanks, key=lambda place: abs(place - middle))
