"""Writing files so that a reader finds the old one or the new one."""

import contextlib
import json
import os
import pathlib
from typing import Any


def write(path: pathlib.Path, content: str | bytes):
  """Writes a file beside its place and moves it there, whole or not at all."""
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
  """Writes `value` as indented JSON, whole or not at all."""
  write(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def truncate(path: pathlib.Path, length: int):
  """Cuts a file back to its first `length` bytes through a new file."""
  if not path.exists() or path.stat().st_size == length:
    return
  with open(path, 'rb') as f:
    content = f.read(length)
  write(path, content)
