"""Indices in every form that Python users write: a number, a slice, numbers, or a mask with a bool for each."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import UserError, UserIndexError, described


def chosen(index: Any, count: int, name: str) -> Tensor:
    """Resolve an index of `count` things to the numbers 0 to count - 1 that it stands for, (N,) int64 on the CPU.

    Raises:
        UserIndexError: a number beyond them.
        UserError: anything else, or a mask of another length; `name` is what is indexed.
    """
    if isinstance(index, str | bytes | bool) or index is None:
        raise _no_index(index, name)
    try:
        if isinstance(index, slice):
            return torch.tensor(range(count)[index], dtype=torch.int64)
        if hasattr(index, "__index__") and not getattr(index, "ndim", 0):
            values = torch.tensor([operator.index(index)])
        else:
            values = torch.as_tensor(index if isinstance(index, Tensor | np.ndarray) else list(index)).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise _no_index(index, name) from None
    if values.ndim == 1 and len(values) == 0 and values.dtype != torch.bool:
        return values.long()
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise _no_index(index, name)
    if values.dtype == torch.bool:
        if len(values) != count:
            raise UserError(f"{name}[...]: expected a mask of {count} bools, got {len(values)}.")
        return values.nonzero().flatten()
    values = values.long()
    low, high = int(values.min()), int(values.max())
    if not -count <= low <= high < count:
        raise UserIndexError(
            f"{name}[...]: expected numbers below {count}, got {high if high >= count else low}."
        )
    return values % count


def _no_index(index: Any, name: str) -> UserError:
    return UserError(
        f"{name}[...]: expected a number, a slice, numbers or a mask of bools, got {described(index)}."
    )
