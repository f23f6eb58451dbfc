"""The one place that chooses who rasterises polygons and scores results: hotcoco, or pycocotools.

Both have one interface and give the same numbers (tests compare them). hotcoco is the faster by far;
pycocotools is the fallback where hotcoco is absent, and the choice of `MASKRCNN_COCO_BACKEND=pycocotools`.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

from maskrcnn.errors import UserError

BACKENDS = ("hotcoco", "pycocotools")


def backend() -> str:
    """The name of the library in use: the one asked for by MASKRCNN_COCO_BACKEND, else the first installed."""
    asked = os.environ.get("MASKRCNN_COCO_BACKEND")
    if asked and asked not in BACKENDS:
        raise UserError(f"MASKRCNN_COCO_BACKEND: expected one of {', '.join(BACKENDS)}, got {asked!r}.")
    for name in (asked,) if asked else BACKENDS:
        if _module(name) is not None:
            return name
    wanted = asked or " or ".join(BACKENDS)
    raise UserError(
        f"COCO masks and scores need {wanted}, which is not installed. Do `pip install {BACKENDS[0]}`."
    )


def mask_api() -> Any:
    """The module with `frPyObjects`, `decode`, `encode`, `merge`, `area`."""
    return _module(backend(), "mask")


def evaluation_api() -> tuple[Any, Any]:
    """The classes `COCO` and `COCOeval`."""
    if backend() == "hotcoco":
        module = _module("hotcoco")
        return module.COCO, module.COCOeval  # type: ignore[union-attr]
    coco, evaluator = _module("pycocotools", "coco"), _module("pycocotools", "cocoeval")
    return coco.COCO, evaluator.COCOeval  # type: ignore[union-attr]


def _module(name: str, part: str = "") -> ModuleType | None:
    try:
        return importlib.import_module(f"{name}.{part}" if part else name)
    except ImportError:
        return None
