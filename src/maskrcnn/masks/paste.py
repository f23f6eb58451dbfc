"""Pixels of predicted masks, from M x M probabilities and their boxes, with numpy alone.

Pixels are detectron2's: each picture pixel's centre is looked up in the M x M map stretched over the box
(bilinear, cell centres, zero outside the map) and is foreground at `threshold` or above. Only the pixels of
the box and one around it are ever computed; larger boxes in strips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from maskrcnn.masks.rle import Runs, bitmap_runs, merge_touching, write_counts

STRIP_PIXELS = 1 << 20  # of a crop at a time
PRODUCT = (
    1 << 18
)  # multiply-adds at a time: from more on, OpenBLAS wakes threads, which takes longer than they save


def window(box: np.ndarray, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Window of the pixels that a mask of `box` (4,) can touch: x0, y0, x1, y1, end excluded."""
    height, width = image_size
    x0, y0, x1, y1 = box.tolist()
    if not (x1 > x0 and y1 > y0):  # also when not a number
        return 0, 0, 0, 0
    left, top = (min(max(int(np.floor(v)) - 1, 0), m) for v, m in ((x0, width), (y0, height)))
    right, bottom = (min(int(np.ceil(v)) + 1, m) for v, m in ((x1, width), (y1, height)))
    return left, top, max(right, left), max(bottom, top)


def strips(
    probs: np.ndarray, box: np.ndarray, image_size: tuple[int, int], threshold: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a mask's window in strips from left to right: (first column, (w, h) bool), columns in memory order.

    probs (M, M) float32; box (4,) float32.
    """
    x0, y0, x1, y1 = window(box, image_size)
    if x1 <= x0 or y1 <= y0:
        return
    size, limit = len(probs), np.float32(threshold)
    down = np.ascontiguousarray(_weights(y0, y1, box[1], box[3], size).T)
    columns = max(1, PRODUCT // (size * max(size, y1 - y0)))
    step = max(1, STRIP_PIXELS // (y1 - y0))
    for left in range(x0, x1, step):
        across = _weights(left, min(left + step, x1), box[0], box[2], size)
        strip = np.empty((len(across), y1 - y0), bool)
        for i in range(0, len(across), columns):
            part = slice(i, i + columns)
            np.greater_equal(across[part] @ probs.T @ down, limit, out=strip[part])
        yield left, strip


def crop(
    probs: np.ndarray, box: np.ndarray, image_size: tuple[int, int], threshold: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Rasterise a mask within its window only: a bool bitmap and the (x, y) of its first pixel in the picture."""
    x0, y0, x1, y1 = window(box, image_size)
    bitmap = np.zeros((y1 - y0, x1 - x0), bool)
    for left, strip in strips(probs, box, image_size, threshold):
        bitmap[:, left - x0 : left - x0 + len(strip)] = strip.T
    return bitmap, (x0, y0)


def encode(
    masks: Iterable[tuple[np.ndarray, np.ndarray]], image_size: tuple[int, int], threshold: float
) -> list[dict[str, Any]]:
    """Encode masks, (probs, box) each, as COCO's compressed RLE at the picture's size."""
    height, width = image_size
    none = np.zeros(0, np.int64)
    starts, ends, lengths = [none], [none], []
    for probs, box in masks:
        y0 = window(box, image_size)[1]
        pieces = [
            bitmap_runs(strip.T, (left, y0), height)
            for left, strip in strips(probs, box, image_size, threshold)
        ]
        pieces.append((none, none))
        first, last = merge_touching(*(np.concatenate(p) for p in zip(*pieces, strict=True)))
        starts.append(first)
        ends.append(last)
        lengths.append(len(first))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    runs = Runs(np.concatenate(starts), np.concatenate(ends), owner, len(lengths))
    return [{"size": [height, width], "counts": c} for c in write_counts(runs, height * width)]


def whole_pixel_boxes(boxes: Any, size: int) -> Any:
    """Boxes (N, 4) that torchvision pastes maps of `size` cells a side to, in place of the predicted boxes (N, 4).

    It adds a cell of zeros around a map and enlarges the result to whole pixels, from the cut-off corners of the
    box grown likewise, both included. The map itself is what is left of that, less the added cells.
    Takes an array or a tensor and returns the same: all it needs are operators that both have.
    """
    middle, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * ((size + 2) / size)
    first, last = _truncated(middle - half), _truncated(middle + half)
    extent = (last - first + 1).clip(min=1)
    cell = extent / (size + 2)
    moved = boxes * 1
    moved[:, :2], moved[:, 2:] = first + cell, first + extent - cell
    return moved


def _truncated(values: Any) -> Any:
    return values.clip(min=0) // 1 - (-values).clip(min=0) // 1


def _weights(start: int, stop: int, low: np.float32, high: np.float32, size: int) -> np.ndarray:
    """Weights of a map's `size` cells along one axis for the pixels `start` to `stop`: (stop - start, size) float32.

    Places are computed in float32 and in the order in which detectron2 and `grid_sample` compute them.
    """
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    place = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
    place = ((place + np.float32(1)) * np.float32(size) - np.float32(1)) / np.float32(2)
    return np.maximum(np.float32(1) - np.abs(place[:, None] - np.arange(size, dtype=np.float32)), 0)
