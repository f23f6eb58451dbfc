"""Finder of calls that would make the host wait for a GPU, in code that runs on a CPU.

Such a call asks a tensor for its values or for a size that depends on them, or brings a value to a device from memory
that is not pinned. Copies between devices are seen on fake tensors of a GPU alone. Found by PyTorch's own hooks, so
that it does not matter who calls; told with the innermost line of this package that led there.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import maskrcnn

PACKAGE = str(Path(maskrcnn.__file__).parent)
OPERATORS = {
    "aten::_local_scalar_dense": "item",
    "aten::is_nonzero": "bool",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::_unique2": "unique",
    "aten::equal": "equal",
    "torchvision::nms": "nms",
    "maskrcnn::rasterize": "rasterize",  # what happens inside operators is not seen from here
}
METHODS = {"tolist": "tolist", "numpy": "numpy", "cpu": "cpu", "__array__": "numpy"}


def place() -> str:
    """Innermost function of the package on the stack: `models/rpn.py:propose`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{Path(name).relative_to(PACKAGE).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[tuple[str, str]], any_copy: bool) -> None:
        super().__init__()
        self.found, self.any_copy = found, any_copy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        if name in OPERATORS:
            self.found[place(), OPERATORS[name]] += 1
        elif name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_"):
            indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.found[place(), "boolean index"] += 1
            elif any(i.device != args[0].device for i in indices):
                self.found[place(), "index on another device"] += 1
        elif name == "aten::_to_copy" and (self.any_copy or not kwargs.get("non_blocking")):
            if (
                kwargs.get("device") is not None
                and torch.device(kwargs["device"]).type != args[0].device.type
            ):
                self.found[place(), "copy to another device"] += 1
        elif name == "aten::copy_" and (self.any_copy or not (args[2:] or (kwargs.get("non_blocking"),))[0]):
            if args[0].device.type != args[1].device.type:
                self.found[place(), "copy to another device"] += 1
        elif name == "aten::repeat_interleave" and not kwargs.get("output_size"):
            self.found[place(), "repeat_interleave without output_size"] += 1
        return func(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in METHODS:
            self.found[place(), METHODS[name]] += 1
        elif (
            name in ("tensor", "as_tensor")
            and kwargs.get("device") is not None
            and not isinstance(args[0], torch.Tensor)
        ):
            self.found[place(), "torch.tensor on the device"] += 1
        elif name == "new_tensor":
            self.found[place(), "new_tensor"] += 1
        return func(*args, **kwargs)


class Waits:
    """Context in which calls that would wait are counted: {(place, what): how often}.

    any_copy: copies to another device too that do not wait.
    """

    def __init__(self, any_copy: bool = False) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self._modes = (_Operators(self.found, any_copy), _Methods(self.found))

    def __enter__(self) -> Waits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
