"""SIGTERM and Ctrl-C: finish the step, save, leave with a message."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(Exception):  # noqa: N818
  """A signal asked the run to stop, and it has saved."""

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.exit_code = 128 + signal_number


@contextlib.contextmanager
def on_sigterm(command: str) -> Iterator[None]:
  """SIGTERM leaves as `Interrupted`, where nothing has to be saved first."""

  def leave(number, frame):
    del frame
    raise Interrupted(f'stopped; run it again to go on: {command}', number)

  old = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


class Signals:
  """Remembers SIGTERM and the first Ctrl-C; a second Ctrl-C is not held."""

  def __init__(self):
    self.signal = 0

  def __enter__(self):
    numbers = (signal.SIGTERM, signal.SIGINT)
    self._old = {n: signal.signal(n, self._remember) for n in numbers}
    return self

  def __exit__(self, *exception):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _remember(self, number, frame):
    del frame
    self.signal = number
    signal.signal(signal.SIGINT, signal.default_int_handler)
