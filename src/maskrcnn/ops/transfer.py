"""Transfer to a GPU that keeps the host from waiting: tensors out of pinned memory, a few numbers by kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pinned(tensor: Tensor) -> Tensor:
    """Tensor in pinned memory, from which a copy to a GPU does not wait."""
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; on a CPU it is the tensor itself."""
    return pinned(tensor).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def small_table(rows: Sequence[Sequence[float]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make a table (N, K) of a few numbers on a device.

    On a GPU by kernels that get them as arguments, so that a recorded CUDA graph holds them: a copy would be read
    again from the host's memory at each replay, when other things are there.
    """
    if device.type == "cpu":
        return torch.tensor(rows, dtype=dtype)
    numbers = [torch.full((), value, dtype=dtype, device=device) for row in rows for value in row]
    return torch.stack(numbers).view(len(rows), -1)
