"""Mask R-CNN: train, evaluate and predict, on current PyTorch, with nothing to compile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from maskrcnn.version import __version__

if TYPE_CHECKING:
    from maskrcnn import ops
    from maskrcnn.errors import UserError
    from maskrcnn.predict import predict_tiled
    from maskrcnn.structures import Instances
    from maskrcnn.zoo import build, load, push_to_hub

__all__ = ["Instances", "UserError", "__version__", "build", "load", "ops", "predict_tiled", "push_to_hub"]

# Torch reads this at its first allocation: large tensors get pages of 2 MiB where Linux offers them. Making room for
# 191 MiB then takes 12 ms instead of 48 (benchmarks/README.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# PyTorch's OpenMP reads this when it is loaded: a thread that waits for others sleeps after so many turns, and not
# after 300,000, in which it holds the core that the thread it waits for, or another program, could use
# (benchmarks/README.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOME = {
    "build": "zoo",
    "load": "zoo",
    "predict_tiled": "predict",
    "push_to_hub": "zoo",
    "Instances": "structures",
    "UserError": "errors",
    "ops": "ops",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `maskrcnn --help` and the config do not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'maskrcnn' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"maskrcnn.{_HOME[name]}")
    return module if name == _HOME[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
