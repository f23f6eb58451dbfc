"""A data set as COCO JSON, whatever format it came in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskrcnn.data.coco import CocoData
from maskrcnn.data.coco_arrays import POLYGONS, RLE


def read_object(
    data: CocoData, j: int
) -> tuple[tuple[float, float, float, float], list[list[float]] | dict[str, Any] | None, list[float] | None]:
    """Read annotation j of the arrays: its box x0, y0, x1, y1, its mask as COCO has it, polygons or RLE, and its key
    points x, y, v; the last two None where there are none. Numbers are rounded to a thousandth of a pixel.
    """
    a = data.arrays
    x0, y0, x1, y1 = a["boxes"][j].astype(float).round(3).tolist()
    mask: Any = None
    if data.masks and a["mask_kind"][j] in (POLYGONS, RLE):
        (mask,) = data.segmentations(np.array([j]))
        mask = mask if isinstance(mask, dict) else [ring.tolist() for ring in mask]
    points = None
    if a["keep_keypoints"][j] and data.num_keypoints:
        first, last = a["keypoint_offsets"][j : j + 2]
        points = a["keypoints"][first:last].astype(float).round(3).tolist()
    return (x0, y0, x1, y1), mask, points


def to_coco(data: CocoData) -> dict[str, Any]:
    """{"images", "annotations", "categories"} of the set, with its repairs: what is not sound is left out.

    Numbers are rounded to a thousandth of a pixel, the precision of the arrays.
    """
    a = data.arrays
    images, annotations = [], []
    for i in range(data.num_images):
        height, width = data.sizes[i].tolist()
        identity = data.image_ids[i].item()
        images.append({"id": identity, "file_name": data.file_name(i), "height": height, "width": width})
        index = np.sort(np.concatenate([data.annotations(i), data.annotations(i, crowd=True)]))
        for j in index.tolist():
            (x0, y0, x1, y1), mask, points = read_object(data, j)
            entry: dict[str, Any] = {
                "id": int(a["ids"][j]) if a["ids"][j] >= 0 else len(annotations) + 1,
                "image_id": identity,
                "category_id": data.category_ids[a["labels"][j]],
                "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
                "iscrowd": int(a["crowd"][j]),
            }
            if mask is not None:
                entry["segmentation"] = mask
            if not math.isnan(a["area"][j]):
                entry["area"] = round(float(a["area"][j]), 4)
            if points is not None:
                entry |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
            annotations.append(entry)
    names = zip(data.category_ids, data.class_names, strict=True)
    categories: list[dict[str, Any]] = [{"id": k, "name": name} for k, name in names]
    if data.keypoint_names:
        skeleton = [[p + 1, q + 1] for p, q in data.skeleton]
        for category in categories:
            category |= {"keypoints": list(data.keypoint_names), "skeleton": skeleton}
    return {"images": images, "annotations": annotations, "categories": categories}
