"""Search for the largest batch that fits into a device's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

# What CUDA's libraries say when they get no memory for themselves.
_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")


def largest_fitting(fits: Callable[[int], bool], first: int = 1, limit: int = 1024) -> int | None:
    """Find the largest batch up to `limit` that fits, or None if not even `first` does.

    The batch is doubled until one does not fit, and then halved in on, so that the answer is exact: the next larger one
    was tried and did not fit. It is taken that a batch fits where a larger one does.
    """
    if first > limit or not fits(first):
        return None
    good, bad = first, min(2 * first, limit + 1)
    while bad <= limit and fits(bad):
        good, bad = bad, min(2 * bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def runs_in_memory(work: Callable[[], Any]) -> bool:
    """Tell whether `work` ends without running out of memory; what it allocated is free again afterwards."""
    import torch

    try:
        work()
        return True
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as e:
        if not any(words in str(e) for words in _NO_MEMORY):
            raise
        return False
    finally:
        free_memory()


def free_memory() -> None:
    """Give back what nobody holds any more, the allocator's own reserve included."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
