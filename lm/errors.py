"""Mistakes that the user can mend, reported in one line."""

import errno


class UserError(Exception):
  """A mistake of the user, reported in one line.

  The message names the field or the path, its value, what is allowed and the
  mend. `run.py` prints it on stderr without a traceback and exits with 2.
  """


def one_line(error: BaseException) -> str:
  """The message of an error without line breaks, or its type if it is empty."""
  return ' '.join(str(error).split()) or type(error).__name__


def is_disk_full(error: BaseException | None) -> bool:
  """Whether an error, or one that caused it, is a full disk or quota.

  Libraries in C++ report it as text without an errno.
  """
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))  # Causes may form a circle.
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if 'No space left on device' in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
