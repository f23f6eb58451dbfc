"""Means over all processes that train together, and threads in forked processes."""

from __future__ import annotations

import os
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: int | float, device: torch.device) -> Tensor:
    """Mean of a count over all processes, as a float32 scalar; the count itself where there is one process.

    Losses divide by this instead of their own count: the processes' gradients are averaged, so their sum over
    the mean count is what one process with the whole batch would have computed.
    """
    value = torch.tensor(float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


@cache
def let_forks_compute() -> None:
    """Give processes that are forked from this one a single CPU thread.

    OpenMP's threads do not survive a fork: once several have worked, a forked process that asks for several waits
    for ever. `DataLoader` does this for its workers; a pool over `predict` needs it as well.
    """
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
