"""How a process keeps memory."""

from __future__ import annotations

import contextlib
import ctypes

# Parameters of glibc's mallopt, from malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
KEPT_BYTES, STEP_BYTES = 2**31 - 1, 2**28


def keep_freed() -> None:
    """Let this process use freed memory again for its next tensors, instead of giving it back to the system.

    By default glibc maps every large tensor anew, and the system clears its pages first, which takes a third of the
    time of a small network's evaluation.  Does nothing where the C library is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT_BYTES), (TOP_PAD, STEP_BYTES)):
            mallopt(parameter, value)
