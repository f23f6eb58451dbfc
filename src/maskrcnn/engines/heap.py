"""C library's setting for memory that every picture asks for again."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that tensors free for the next ones; returns True if it does.

    It gives every large block back to the system once it is free and takes a fresh one a moment later, which the
    system has to fill with zeros first: a tenth of R50-FPN's time on two cores, for an eighth less memory. For
    processes of our own alone, since it holds until they end. Only glibc is asked.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(name, value)
        for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    )
