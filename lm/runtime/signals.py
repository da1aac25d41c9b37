"""SIGTERM and Ctrl-C: finish the step, save, leave with a message."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from lm.runtime import hosts

# Seconds between looks at what other processes ask.
_PAUSE = 0.2


class Interrupted(KeyboardInterrupt):
  """A signal asked the run to stop, and it has saved.

  No `Exception`: it may come in the middle of anything, also of what is tried
  again or passed over when it fails.
  """

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
  """Remembers SIGTERM and the first Ctrl-C; a second Ctrl-C is not held.

  Several processes stop after the same step, whichever of them has the signal.
  """

  def __init__(self):
    self.signal = 0
    self._agreement = None

  def __enter__(self):
    numbers = (signal.SIGTERM, signal.SIGINT)
    self._old = {n: signal.signal(n, self._remember) for n in numbers}
    if group := hosts.group():
      self._agreement = _Agreement(group, self)
    return self

  def __exit__(self, kind, *exception):
    if self._agreement and kind is None:
      self._agreement.close()
    for number, handler in self._old.items():
      signal.signal(number, handler)
    if self.signal and kind is None:
      # It came too late for the last step: for the handlers of before.
      signal.raise_signal(self.signal)

  def after(self, number: int) -> int:
    """The signal to stop for now that step `number` is done, or 0."""
    if self._agreement:
      return self._agreement.after(number)
    return self.signal

  def _remember(self, number, frame):
    del frame
    self.signal = number
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Agreement:
  """Finds a step that no process has passed, without waiting at every step.

  A process with a signal asks. The first process then begins a round: each
  process is held where its step ends, tells the last step that it went past,
  and all stop after the step behind the latest of these.
  """

  def __init__(self, group, signals: Signals):
    self._group, self._signals = group, signals
    names = ('ask', 'round', 'passed', 'closed')
    self._topics = {name: group.topic(name) for name in names}
    self._passed, self._stop = -1, None
    self._signal = 0
    # Held while a round is on, so that the training loop does not go on.
    self._lock, self._end = threading.Lock(), threading.Event()
    # A daemon: a loop that fails does not close it.
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def after(self, number: int) -> int:
    """See `Signals`."""
    with self._lock:
      if self._stop is not None and number >= self._stop:
        return self._signal
      self._passed = number
      return 0

  def close(self):
    """All processes are past their last step: no round begins any more."""
    if hosts.is_first():
      with self._lock:
        self._end.set()
      self._tell('closed', True)
    else:
      # Meanwhile the thread answers.
      self._group.wait(self._topics['closed'], 1)
      self._end.set()
    self._thread.join()

  def _tell(self, name: str, value: int):
    self._group.tell(self._topics[name], value)

  def _told(self, name: str) -> dict[int, int]:
    return self._group.told(self._topics[name])

  def _run(self):
    asked = False
    try:
      while not self._end.wait(_PAUSE) and self._stop is None:
        if self._signals.signal and not asked:
          self._tell('ask', self._signals.signal)
          asked = True
        if hosts.is_first():
          self._begin()
        elif begun := self._told('round'):
          with self._lock:
            self._answer(begun[0])
    except jax.errors.JaxRuntimeError:
      return  # without the first process, JAX ends this one

  def _begin(self):
    requests = self._told('ask')
    with self._lock:
      if requests and not self._end.is_set():
        number = next(iter(requests.values()))
        self._tell('round', number)
        self._answer(number)

  def _answer(self, number: int):
    self._tell('passed', self._passed)
    passed = self._group.wait(self._topics['passed'], self._group.count)
    self._stop = max(passed.values()) + 1
    self._signal = number
