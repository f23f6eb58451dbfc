"""Small data sets and results of rectangles, for analyses that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn.evaluation.pairs import Pairs, pair
from maskrcnn.evaluation.truth import load_truth
from maskrcnn.masks import rle_encode

Box = tuple[int, int, int, int]  # x, y, width, height
SIZE = (60, 80)  # height and width; the diagonal is 100


def shape(box: Box, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Both `bbox` and `segmentation` of a rectangle."""
    x, y, w, h = box
    bitmap = np.zeros(size, np.uint8)
    bitmap[y : y + h, x : x + w] = 1
    return {"bbox": list(box), "segmentation": rle_encode(bitmap)}


def data_set(
    objects: Sequence[tuple[int, int, Box]],
    *,
    num_images: int = 1,
    names: Sequence[str] = ("cat", "dog"),
    crowds: Sequence[int] = (),
    size: tuple[int, int] = SIZE,
) -> dict[str, Any]:
    """COCO data set of objects (image, class, box), all numbers from 1; `crowds`: places of those that are regions."""
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": label,
            "iscrowd": int(i in crowds),
            "area": box[2] * box[3],
        }
        | shape(box, size)
        for i, (image, label, box) in enumerate(objects)
    ]
    images = [
        {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
        for i in range(1, num_images + 1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def results(
    found: Sequence[tuple[int, int, float, Box]], size: tuple[int, int] = SIZE
) -> list[dict[str, Any]]:
    """COCO results of detections (image, class, score, box)."""
    return [
        {"image_id": image, "category_id": label, "score": score} | shape(box, size)
        for image, label, score, box in found
    ]


def pairs_of(
    objects: Sequence[tuple[int, int, Box]],
    found: Sequence[tuple[int, int, float, Box]],
    kind: str = "segm",
    **how: Any,
) -> Pairs:
    return pair(load_truth(data_set(objects, **how)), results(found, how.get("size", SIZE)), kind)
