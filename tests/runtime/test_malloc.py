"""Memory that is freed stays with the process."""

import subprocess
import sys

import pytest

# More than the largest threshold that `mallopt` takes as a number; the pages
# are never touched, so that this costs nothing.
SCRIPT = """
import ctypes
from lm.runtime import malloc

malloc.keep()
libc = ctypes.CDLL(None)
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
bottom = libc.sbrk(0)
large = libc.malloc(3 << 30)
top = libc.sbrk(0)
assert large and top - bottom >= 3 << 30
libc.free(large)
assert libc.sbrk(0) == top, (top - libc.sbrk(0)) >> 20
"""


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='mallopt is of glibc'
)
def test_three_gigabytes_are_not_given_back():
  subprocess.run([sys.executable, '-c', SCRIPT], check=True, timeout=600)
