"""Detections in the forms that other programs read, without PyTorch: COCO's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn.errors import UserError, described


def coco_results(
    boxes: np.ndarray,
    scores: Sequence[float],
    labels: Sequence[int],
    rles: Sequence[dict[str, Any]] | None,
    keypoints: np.ndarray | None,
    image_id: int | str,
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """One picture's detections as COCO results: boxes (N, 4), keypoints (N, P, 3). See `Instances.to_coco`.

    Raises:
        UserError: an id that is no number or text, or fewer ids than classes.
    """
    image_id, ids = _id(image_id, "image_id"), _ids(category_ids)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    if ids and labels and max(labels) >= len(ids):
        raise UserError(
            f"category_ids: expected an id for each class, {max(labels) + 1} or more, got {len(ids)}."
        )
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": ids[k] if ids else k, "bbox": b, "score": s}
        for b, s, k in zip(xywh, scores, labels, strict=True)
    ]
    if rles is not None:
        for entry, rle in zip(results, rles, strict=True):
            entry["segmentation"] = rle
    if keypoints is not None:
        points = keypoints.copy()
        points[..., :2] -= 0.5
        for entry, p in zip(results, points.reshape(len(points), -1).tolist(), strict=True):
            entry["keypoints"] = p
    return results


def _id(value: Any, where: str) -> int | str:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # JSON has no numpy, and no tensors
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: expected a whole number or text, got {described(value)}.")
    return value


def _ids(values: Any) -> list[int | str | None]:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise UserError(f"category_ids: expected a sequence of ids, got {described(values)}.")
    return [None if v is None else _id(v, f"category_ids[{i}]") for i, v in enumerate(values)]
