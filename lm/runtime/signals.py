"""SIGTERM and Ctrl-C: finish the step, save, leave with a message.

Several processes must stop after the same step, and `_Agreement` finds it.
`multihost_utils.reached_preemption_sync_point` would, too, but its preemption
service handles SIGTERM in C++ from `jax.distributed.initialize` on. A signal
has one handler: either Python's never runs, and SIGTERM has no effect while
data is prepared, or ours replaces the service's, which then learns of no
signal. Besides, the service ignores Ctrl-C, accepts no notice from Python, and
does not report which signal it was, on which the exit code depends.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from lm.runtime import hosts

# Seconds between polls of what other processes ask for.
_PAUSE = 0.2


class Interrupted(KeyboardInterrupt):
  """A signal stopped the run, after saving what there was to save.

  Not an `Exception`: it may be raised in any line, also where exceptions are
  caught to retry or to skip something.
  """

  def __init__(self, message: str, signal_number: int):
    super().__init__(message)
    self.exit_code = 128 + signal_number


@contextlib.contextmanager
def on_sigterm(command: str) -> Iterator[None]:
  """Raises `Interrupted` at SIGTERM, where nothing has to be saved first."""

  def leave(number, frame):
    del frame
    raise Interrupted(f'stopped; run it again to continue: {command}', number)

  old = signal.signal(signal.SIGTERM, leave)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, old)


class Signals:
  """Records SIGTERM and the first Ctrl-C; a second Ctrl-C interrupts at once.

  Several processes stop after the same step, whichever receives the signal.
  """

  def __init__(self):
    self.signal = 0
    self._agreement = None

  def __enter__(self):
    numbers = (signal.SIGTERM, signal.SIGINT)
    self._old = {n: signal.signal(n, self._record) for n in numbers}
    if group := hosts.group():
      self._agreement = _Agreement(group, self)
    return self

  def __exit__(self, kind, *exception):
    if self._agreement and kind is None:
      self._agreement.close()
    for number, handler in self._old.items():
      signal.signal(number, handler)
    if self.signal and kind is None:
      # It arrived after the last step: the earlier handlers receive it.
      signal.raise_signal(self.signal)

  def after(self, number: int) -> int:
    """The signal to stop for after step `number`, or 0 to continue."""
    if self._agreement:
      return self._agreement.after(number)
    return self.signal

  def _record(self, number, frame):
    del frame
    self.signal = number
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Agreement:
  """Finds a step that no process has passed, without waiting at every step.

  A process that receives a signal asks to stop. The first process then begins a
  round: each process pauses where its step ends and publishes the last step
  that it has passed, and all stop after the one that follows the latest.
  """

  def __init__(self, group, signals: Signals):
    self._group, self._signals = group, signals
    names = ('ask', 'round', 'passed', 'closed')
    self._topics = {name: group.topic(name) for name in names}
    self._passed, self._stop = -1, None
    self._signal = 0
    # Held during a round, so that the training loop pauses.
    self._lock, self._end = threading.Lock(), threading.Event()
    # A daemon, since a failing loop does not close it.
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
    """Waits until no round can begin; called after the last step."""
    if hosts.is_first():
      with self._lock:
        self._end.set()
      self._publish('closed', True)
    else:
      # The thread still answers a round that began before.
      self._group.wait(self._topics['closed'], 1)
      self._end.set()
    self._thread.join()

  def _publish(self, name: str, value: int):
    self._group.publish(self._topics[name], value)

  def _published(self, name: str) -> dict[int, int]:
    return self._group.published(self._topics[name])

  def _run(self):
    asked = False
    try:
      while not self._end.wait(_PAUSE) and self._stop is None:
        if self._signals.signal and not asked:
          self._publish('ask', self._signals.signal)
          asked = True
        if hosts.is_first():
          self._begin()
        elif begun := self._published('round'):
          with self._lock:
            self._answer(begun[0])
    except jax.errors.JaxRuntimeError:
      return  # the first process is gone, and JAX ends this one

  def _begin(self):
    requests = self._published('ask')
    with self._lock:
      if requests and not self._end.is_set():
        number = next(iter(requests.values()))
        self._publish('round', number)
        self._answer(number)

  def _answer(self, number: int):
    self._publish('passed', self._passed)
    passed = self._group.wait(self._topics['passed'], self._group.count)
    self._stop = max(passed.values()) + 1
    self._signal = number
