"""A data set as COCO JSON, whatever format it came in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskrcnn.data.coco import CocoData


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
        masks = data.segmentations(index) if data.masks else [None] * len(index)
        for j, mask in zip(index.tolist(), masks, strict=True):
            x0, y0, x1, y1 = (round(v, 3) for v in a["boxes"][j].astype(float).tolist())
            entry: dict[str, Any] = {
                "id": int(a["ids"][j]) if a["ids"][j] >= 0 else len(annotations) + 1,
                "image_id": identity,
                "category_id": data.category_ids[a["labels"][j]],
                "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
                "iscrowd": int(a["crowd"][j]),
            }
            if mask is not None:
                entry["segmentation"] = mask if isinstance(mask, dict) else [ring.tolist() for ring in mask]
            if not math.isnan(a["area"][j]):
                entry["area"] = round(float(a["area"][j]), 4)
            if a["keep_keypoints"][j]:
                first, last = a["keypoint_offsets"][j : j + 2]
                points = a["keypoints"][first:last].astype(float).round(3).tolist()
                entry |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
            annotations.append(entry)
    names = zip(data.category_ids, data.class_names, strict=True)
    categories: list[dict[str, Any]] = [{"id": k, "name": name} for k, name in names]
    if data.keypoint_names:
        skeleton = [[p + 1, q + 1] for p, q in data.skeleton]
        for category in categories:
            category |= {"keypoints": list(data.keypoint_names), "skeleton": skeleton}
    return {"images": images, "annotations": annotations, "categories": categories}
