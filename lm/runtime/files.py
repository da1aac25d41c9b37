"""Atomic writing: readers find the old file or the new one."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any


def write(path: pathlib.Path, content: str | bytes):
  """Writes a file atomically: beside its place, then moved there."""
  if isinstance(content, str):
    content = content.encode()
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any):
  """Writes `value` as indented JSON, atomically."""
  write(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def truncate(path: pathlib.Path, length: int):
  """Truncates a file to its first `length` bytes, atomically."""
  if not path.exists() or path.stat().st_size == length:
    return
  with open(path, 'rb') as f:
    content = f.read(length)
  write(path, content)


@contextlib.contextmanager
def fresh_folder(
  directory: pathlib.Path, *, is_whole: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
  """A temporary folder that is renamed to `directory` on success.

  Args:
    is_whole: whether `directory` is complete, since another process has
      written it meanwhile.
  """
  directory.parent.mkdir(parents=True, exist_ok=True)
  prefix = f'.{directory.name}.'
  for stale in directory.parent.glob(f'{prefix}*.tmp'):
    with _held(stale) as free:
      if free:
        shutil.rmtree(stale, ignore_errors=True)
  made = tempfile.mkdtemp('.tmp', prefix, directory.parent)
  temporary = pathlib.Path(made)
  temporary.chmod(0o755)
  try:
    # Locked to the end: without the lock another process would remove it.
    with _held(temporary):
      yield temporary
      if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()
      try:
        temporary.rename(directory)
      except OSError:
        # Another process has prepared the same data meanwhile.
        if not is_whole(directory):
          raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[bool]:
  """Holds a folder's lock; yields False if another process holds it.

  The lock ends with the process, unlike a process number in a name, which
  another process or host may have, too.
  """
  try:
    descriptor = os.open(folder, os.O_RDONLY)
  except FileNotFoundError:  # removed meanwhile
    yield False
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield True
  except BlockingIOError:
    yield False
  finally:
    os.close(descriptor)
