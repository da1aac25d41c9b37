"""Host memory: how the C library treats what XLA frees on CPU."""

import ctypes
import sys

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep():
  """Has glibc keep the memory that the process frees.

  On CPU XLA allocates its temporaries anew at each step. By default glibc
  returns large ones to the system, and their pages must be mapped again. Call
  this before threads are started, each of which gets an arena of its own: on
  two cores the quick start then trains at 6,700 tokens/s, otherwise at 5,300.
  The causal step of third_party/speed.py, with 1.8 GB of temporaries, takes
  1.3 s, or 3.9 s if its pages are mapped again.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:  # musl has none
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_ARENA_MAX, 1)
