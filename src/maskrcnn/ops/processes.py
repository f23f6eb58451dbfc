"""Means over all processes that train together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: int | float | Tensor, device: torch.device) -> Tensor:
    """Mean of a count over all processes, as a float32 scalar; the count itself where there is one process.

    Losses divide by this instead of their own count: the processes' gradients are averaged, so their sum over
    the mean count is what one process with the whole batch would have computed.
    """
    if isinstance(count, Tensor):
        value = count.to(device).float()
    else:
        value = torch.full((), float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value
