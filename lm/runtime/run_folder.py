"""Run folders: locks against other processes, and complete copies."""

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Iterator

from lm import errors
from lm.runtime import hosts


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Locks the run folder against other runs; the first process holds it."""
  if not hosts.is_first():
    yield
    return
  is_new = not workdir.exists()
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / '.lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f'another process is training in --workdir={workdir}; wait for it, or '
        'give another folder'
      ) from None
    try:
      yield
    except errors.UserError:
      # A mistake in the very first config leaves no folder behind.
      names = [path.name for path in workdir.iterdir()]
      if is_new and names == ['.lock']:
        shutil.rmtree(workdir)
      raise


def copy_folder(source: pathlib.Path, target: pathlib.Path):
  """Copies a folder unless `target` exists; it is never there in part."""
  if target.exists():
    return
  temporary = target.with_name(f'.{target.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  shutil.copytree(source, temporary)
  temporary.rename(target)
