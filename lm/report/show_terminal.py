"""Examples of objectives, printed to a terminal and aligned token by token.

Colours only repeat what the text says; there are none if stdout is not a
terminal.
"""

import collections
import sys
from collections.abc import Iterator, Sequence

import rich.console
import rich.text
from rich.cells import cell_len

from lm.report import token_text, views

# Maximum number of segments of a packed row that are listed.
_SEGMENTS = 12
_SEGMENT_STYLES = ('cyan', 'yellow', 'blue', 'green', 'red')


def write(shown: views.Shown):
  """Prints everything in the width of the terminal."""
  console = rich.console.Console(file=sys.stdout, highlight=False)
  # Not written by rich, which ends the process when the pipe is closed.
  with console.capture() as capture:
    for line in lines(shown, console.width):
      console.print(line, soft_wrap=True)
  sys.stdout.write(capture.get())
  sys.stdout.flush()


def lines(shown: views.Shown, width: int) -> Iterator[rich.text.Text]:
  """Yields the lines, each less than `width` cells wide."""
  yield from _paragraph(shown.source, width, 'dim')
  for number, text in enumerate(shown.texts, 1):
    yield rich.text.Text()
    title = f'text {number} of {len(shown.texts)}, {text.tokens} tokens'
    yield from _paragraph(title, width, 'bold reverse')
    yield from _paragraph(text.original, width)
    for view in text.views:
      yield from _head(view, view.title, width)
      for stack in view.stacks:
        yield from _name(stack, view, width)
        yield from aligned(stack, width)
  for view in shown.rows:
    yield from _head(view, f'a packed row: {view.title}', width)
    for stack in view.stacks:
      yield from _name(stack, view, width)
      yield from strip(stack, width)
  yield rich.text.Text()
  yield from _paragraph('in rows', width, 'bold reverse')
  for summary in shown.summaries:
    yield from _paragraph(_counts(summary), width)
  for note in shown.notes:
    yield from _paragraph(note, width, 'yellow')


def aligned(stack: views.Stack, width: int) -> Iterator[rich.text.Text]:
  """Yields the lines of `views.Stack.lines` in blocks of columns that fit."""
  texts = stack.lines()
  label_width = max(map(cell_len, texts)) + 1
  # The last column stays free, since some terminals break the line after it.
  max_width = max(width - label_width - 1, 1)
  widths = [
    min(max_width, max(map(cell_len, column)))
    for column in zip(*texts.values(), strict=True)
  ]
  styles = _styles(stack)
  for first, stop in _blocks(widths, max_width):
    if first:
      yield rich.text.Text()
    for label, cells in texts.items():
      line = rich.text.Text(label.ljust(label_width), 'dim')
      for i in range(first, stop):
        cell = token_text.cut(cells[i], widths[i])
        # The style of a cell does not extend to the spaces after it.
        line.append(cell, styles[label][i])
        line.append(' ' * (widths[i] - cell_len(cell) + 1), 'not dim')
      line.rstrip()
      yield line


def strip(stack: views.Stack, width: int) -> Iterator[rich.text.Text]:
  """Yields a packed row, one character per position, and a line per example.

  segment  1112222....    the last digit of its number; padding is a dot
  predicts #.###           # at positions that predict a token
  """
  label_width = len('predicts') + 1
  max_width = max(width - label_width - 1, 1)
  segment_L = stack.segment_L.tolist()
  for first in range(0, len(segment_L), max_width):
    line = rich.text.Text('segment'.ljust(label_width), 'dim')
    for segment in segment_L[first : first + max_width]:
      text = str(segment % 10) if segment else '.'
      line.append(text, _segment_style(segment))
    yield line
    if stack.weights_L is not None:
      line = rich.text.Text('predicts'.ljust(label_width), 'dim')
      for weight in stack.weights_L[first : first + max_width].tolist():
        line.append('#' if weight else '.', 'bold green' if weight else 'dim')
      yield line
  segments = list(views.segments(stack.segment_L))
  for number, place in segments[:_SEGMENTS]:
    about = f'{number}: {place.stop - place.start} token(s)'
    if stack.weights_L is not None:
      about += f', predicts {int((stack.weights_L[place] > 0).sum())}'
    line = rich.text.Text(f'  {about} ', _segment_style(number))
    line.append(''.join(stack.reads[place]), 'not bold')
    line.plain = token_text.cut(line.plain, max(width - 1, 1))
    yield line
  if len(segments) > _SEGMENTS:
    yield rich.text.Text(f'  and {len(segments) - _SEGMENTS} more', 'dim')


def _head(view: views.View, title: str, width: int) -> Iterator[rich.text.Text]:
  yield rich.text.Text()
  note = f' ({view.note})' if view.note else ''
  yield from _paragraph(title + note, width, 'bold')
  yield from _paragraph(view.sentence(), width)


def _name(
  stack: views.Stack, view: views.View, width: int
) -> Iterator[rich.text.Text]:
  """Yields the name of the stack if there are two."""
  if len(view.stacks) > 1:
    yield from _paragraph(f'{stack.name}:', width, 'italic')


def _paragraph(
  text: str, width: int, style: str = ''
) -> Iterator[rich.text.Text]:
  """Yields lines, broken at spaces, or anywhere in scripts without them."""
  console = rich.console.Console(width=max(width - 1, 1))
  for line in rich.text.Text(text, style).wrap(console, console.width):
    line.rstrip()
    yield line


def _blocks(widths: Sequence[int], max_width: int) -> Iterator[tuple[int, int]]:
  """Yields [start, end) of each block of columns, which a space separates.

  widths [3 3 3 8], max_width 8 -> (0, 2) (2, 3) (3, 4)
  """
  start, used = 0, 0
  for column, width in enumerate(widths):
    if column > start and used + 1 + width > max_width:
      yield start, column
      start, used = column, 0
    used += width + (column > start)
  if widths:
    yield start, len(widths)


def _styles(stack: views.Stack) -> dict[str, list[str]]:
  """Name of a line -> the style of each position."""
  length = len(stack.reads)
  styles = {
    'position': ['dim'] * length,
    'reads': ['magenta' if special else '' for special in stack.special_L],
    'segment': [_segment_style(number) for number in stack.segment_L.tolist()],
  }
  if stack.weights_L is not None:
    styles['predicts'] = ['bold green'] * length
    styles['weight'] = [
      'green' if weight else 'dim' for weight in stack.weights_L.tolist()
    ]
    order = stack.order_L.tolist()
    counts = collections.Counter(order)
    # Positions of the same order see each other.
    styles['order'] = ['cyan' if counts[n] > 1 else 'dim' for n in order]
  return styles


def _segment_style(number: int) -> str:
  if not number:
    return 'dim'
  return _SEGMENT_STYLES[(number - 1) % len(_SEGMENT_STYLES)]


def _counts(summary: views.Summary) -> str:
  cells = summary.cells()
  return (
    f'{cells["objective"]}, {cells["architecture"]}: {cells["rows"]} row(s) of '
    f'{summary.positions // summary.rows:,} positions read {cells["read"]} '
    f'tokens and predict {cells["predicted"]}, loss weight '
    f'{cells["loss weight"]}, padding {cells["padding"]}; attention '
    f'{cells["attention"]}, scorer {cells["scorer"]}'
  )
