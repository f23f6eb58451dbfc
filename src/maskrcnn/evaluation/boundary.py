"""Boundary AP: Cheng et al. 2021, "Boundary IoU" (arXiv 2103.16562).

COCO's AP with another overlap: the smaller of the masks' IoU and of the IoU of their boundaries, which are the pixels
of a mask at most 2 % of the picture's diagonal away from its outline. It falls where edges are coarse, at any size,
while the masks' IoU of a large object hardly sees them. A picture's border counts as outline, as in the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn.evaluation.pairs import IOUS, Pairs, Picture
from maskrcnn.masks.coco_api import pairwise_iou
from maskrcnn.masks.rle import Runs, bitmap_runs, write_counts
from maskrcnn.masks.store import read_bitmaps

DILATION = 0.02  # of the picture's diagonal


def boundary_matches(pairs: Pairs) -> list[np.ndarray]:
    """Match each picture's detections as `Picture.match` does at IOUS, by the boundary's overlap: (T, D) each."""
    return [p.match(IOUS, boundary_iou(p)) for p in pairs.pictures]


def boundary_iou(picture: Picture) -> np.ndarray:
    """Overlap (D, G) of masks and boundaries. Pairs of masks that overlap too little for COCO keep the masks' IoU."""
    iou = picture.iou.copy()
    near = picture.same_class & (iou >= IOUS[0])
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return iou
    assert picture.size is not None  # masks have one
    distance = width(picture.size)
    found = boundaries([picture.found[i] for i in rows], distance)
    there = boundaries([picture.objects[i] for i in columns], distance)
    part = np.ix_(rows, columns)
    iou[part] = np.where(
        near[part], np.minimum(iou[part], pairwise_iou(found, there, picture.crowd[columns])), iou[part]
    )
    return iou


def width(size: tuple[int, int]) -> int:
    """Pixels of a boundary in a picture of size (H, W)."""
    return max(1, round(DILATION * math.hypot(*size)))


def boundaries(rles: Sequence[Mapping[str, Any]], distance: int) -> list[dict[str, Any]]:
    """Cut masks down to their pixels that are at most `distance` from a pixel outside, diagonals being 1."""
    bits, starts, crops = read_bitmaps(dict(enumerate(rles)), len(rles))
    out = []
    for k, rle in enumerate(rles):
        height, pixels = rle["size"][0], rle["size"][0] * rle["size"][1]
        mask = bits[starts[k] : starts[k + 1]].reshape(crops[k, 2:]).T > 0
        ring = mask & ~_eroded(_eroded(mask, distance).T, distance).T
        begin, end = bitmap_runs(ring, (int(crops[k, 0]), int(crops[k, 1])), height)
        runs = Runs(begin, end, np.zeros(len(begin), np.int64), 1)
        out.append({"size": list(rle["size"]), "counts": write_counts(runs, pixels)[0]})
    return out


def _eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Keep the pixels whose `distance` neighbours up and down belong to the mask, outside which all is background."""
    window = 2 * distance + 1
    sums = np.cumsum(np.pad(mask, ((distance + 1, distance), (0, 0))), axis=0, dtype=np.int32)
    return sums[window:] - sums[:-window] == window
