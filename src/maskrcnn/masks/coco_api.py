"""Choice of the library that rasterises polygons and scores results: hotcoco, or pycocotools.

Both have one interface and give the same numbers (tests compare them). hotcoco is the faster by far;
pycocotools is the fallback where hotcoco is absent, and the choice of `MASKRCNN_COCO_BACKEND=pycocotools`. Where
neither is there, polygons are filled all the same: a GPU's image that has PyTorch alone can be measured.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.masks.filling import fill_polygon
from maskrcnn.masks.rle import rle_decode

BACKENDS = ("hotcoco", "pycocotools")


def backend() -> str:
    """Name of the library in use: the one asked for by MASKRCNN_COCO_BACKEND, else the first installed."""
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


def fill_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Rasterise P polygons (x, y, x, y, ..., three points or more): (P, H, W) uint8 of 0 and 1.

    Without any library in numpy, with the same result.
    """
    if not os.environ.get("MASKRCNN_COCO_BACKEND") and not any(_module(name) for name in BACKENDS):
        return np.stack([fill_polygon(p, size) for p in polygons])
    api = _module(backend(), "mask")
    assert api is not None  # backend() has found it
    if backend() == "hotcoco":
        return api.decode(api.frPyObjects(polygons, *size)).transpose(2, 0, 1)
    # It takes lists only, and what it decodes to upsets numpy 2.
    return np.stack([rle_decode(r) for r in api.frPyObjects([p.tolist() for p in polygons], *size)])


def merge_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Rasterise the polygons of one mask in a picture of size (H, W): one RLE."""
    api = _module(backend(), "mask")
    assert api is not None
    return api.merge(api.frPyObjects([list(p) for p in polygons], *size))


def pairwise_iou(
    found: Sequence[Any], objects: Sequence[Any], crowd: Sequence[bool] | np.ndarray
) -> np.ndarray:
    """IoU (D, G) of detections and objects, RLEs or boxes x, y, w, h; of a crowd the share of the detection in it."""
    if not len(found) or not len(objects):
        return np.zeros((len(found), len(objects)))
    api = _module(backend(), "mask")
    assert api is not None
    boxes = not isinstance(found[0], dict)
    ours, theirs = ((np.asarray(s, float) if boxes else s) for s in (found, objects))
    return np.asarray(api.iou(ours, theirs, [int(c) for c in crowd]), float)


def precision_recall(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str,
    max_detections: list[int],
    keypoint_sigmas: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Match results to a COCO data set of integer ids, by image and class; `kind` as COCOeval's `iouType`.

    Returns precision (T, R, K, A, M) and recall (T, K, A, M): T IoU thresholds .5 to .95, R = 101 recall
    levels, K classes by id, A areas (all, small, medium, large; key points have no small), M `max_detections`.
    -1 where there is nothing to find. The entries of `results` are completed in place.
    """
    evaluator_class = _coco_class("COCOeval")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        coco = _data_set(truth)
        found = coco.loadRes(results) if results else _data_set({**truth, "annotations": []})
        evaluator = evaluator_class(coco, found, kind)
        evaluator.params.maxDets = max_detections
        if keypoint_sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.asarray(keypoint_sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _data_set(content: dict[str, Any]) -> Any:
    if backend() == "hotcoco":
        return _coco_class("COCO")(content)
    coco = _coco_class("COCO")()
    coco.dataset = content
    coco.createIndex()
    return coco


def _coco_class(name: str) -> Any:
    library = backend()
    return getattr(_module(library, "" if library == "hotcoco" else name.lower()), name)


def _module(name: str, part: str = "") -> ModuleType | None:
    try:
        return importlib.import_module(f"{name}.{part}" if part else name)
    except ImportError:
        return None
