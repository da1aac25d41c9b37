"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import io
import sys
import time
from typing import TextIO

import rich.console
import rich.progress

# Seconds between lines of progress without a terminal.
_LINE_EVERY = 10.0


def duration(seconds: float) -> str:
  """h:mm:ss, or m:ss under an hour."""
  minutes, seconds = divmod(round(max(0.0, seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{seconds:02d}'
  return f'{minutes}:{seconds:02d}'


class Progress:
  """Counts up to `total`; shows a status, the speed and the time left.

  A total of None is unknown: no time left is shown. Use as a context manager.
  The bar moves at every update; plain lines are printed by updates with `log`
  only.
  """

  def __init__(
    self,
    what: str,
    *,
    start: int,
    total: int | None,
    stream: TextIO | None = None,
  ):
    self._what, self._total = what, total
    self._first, self._done, self._status = start, start, ''
    self._stream = stream or sys.stdout
    self._began = time.monotonic()
    self._bar = None
    if self._stream.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.fields[status]}'),
        console=rich.console.Console(file=self._stream, highlight=False),
        transient=True,
      )
      self._task = self._bar.add_task(
        what, total=total, completed=start, status=''
      )

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception):
    if self._bar:
      self._bar.stop()

  def update(self, done: int, status: str = '', *, log: bool = False):
    """Sets the count to `done`; with `log`, prints a plain line.

    Without a new status the last one is kept.
    """
    self._done = done
    self._status = status or self._status
    if self._bar is None and not log:
      return
    status = ', '.join(filter(None, [self._status, self._left()]))
    if self._bar:
      self._bar.update(self._task, completed=done, status=status)
    else:
      of = '' if self._total is None else f'/{self._total}'
      colon = ': ' if status else ''
      self.line(f'{self._what} {done}{of}{colon}{status}')

  def advance(self, count: int):
    """Advances the count by `count`."""
    done = self._done + count
    self.update(done if self._total is None else min(done, self._total))

  def line(self, text: str):
    """Prints a line, above the bar where there is one."""
    if self._bar:
      self._bar.console.print(text, markup=False, soft_wrap=True)
    else:
      print(text, file=self._stream, flush=True)

  def _left(self) -> str:
    done = self._done - self._first
    if not done or self._total is None or self._done >= self._total:
      return ''
    elapsed = time.monotonic() - self._began
    return f'{duration(elapsed / done * (self._total - self._done))} left'


class Megabytes:
  """Progress in megabytes of text; a context manager.

  Args:
    total: number of bytes; None if unknown.
    shown: whether anything is shown.
  """

  def __init__(self, what: str, total: int | None, *, shown: bool):
    self._done, self._last = 0, time.monotonic()
    self._progress = Progress(
      f'{what}, MB',
      start=0,
      total=None if total is None else -(-total // 10**6),
      stream=None if shown else io.StringIO(),
    )

  def __enter__(self):
    self._progress.__enter__()
    return self

  def __exit__(self, *exception):
    self._progress.__exit__(*exception)

  def advance(self, size: int):
    """Advances by `size` bytes."""
    self._done += size
    log = time.monotonic() - self._last > _LINE_EVERY
    if log:
      self._last = time.monotonic()
    self._progress.update(self._done // 10**6, log=log)
