"""Drawn shapes and label pictures as COCO segmentations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.ops.rle import Runs, write_counts

_AROUND = 64  # corners of a circle: its area comes out 0.2 % small


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """[x, y, x, y, ...] of the four corners."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """[x, y, ...] around; `angle` in radians turns it from x towards y."""
    ring = []
    for k in range(_AROUND):
        x, y = rx * math.cos(2 * math.pi * k / _AROUND), ry * math.sin(2 * math.pi * k / _AROUND)
        ring += [
            cx + x * math.cos(angle) - y * math.sin(angle),
            cy + x * math.sin(angle) + y * math.cos(angle),
        ]
    return ring


def size_of(path: Path) -> dict[str, int]:
    """{"height", "width"} of an image file for a COCO image; {} if it cannot be read, which the checks report."""
    from maskrcnn.ops.image_io import image_size

    try:
        height, width = image_size(path)
    except UserError:
        return {}
    return {"height": height, "width": width}


def read_labels(path: Path) -> np.ndarray:
    """(H, W) the numbers in a grey or palette picture: a palette's indices, not its colours.

    Raises:
        UserError: unreadable, or a colour picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except Exception as e:  # Pillow's plug-ins raise nearly anything on a corrupt file
        raise UserError(f"{path}: cannot read the label picture: {' '.join(str(e).split())}.") from None
    if pixels.ndim != 2 or mode == "F":
        raise UserError(f"{path}: expected a label picture, grey or with a palette, got one of mode {mode}.")
    return pixels


def masks_of(labels: np.ndarray) -> dict[int, dict[str, Any]]:
    """The compressed RLE of each number but 0 in an (H, W) map, by number."""
    height, width = labels.shape
    flat = labels.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [flat.size]])
    values = flat[starts]
    kept = np.flatnonzero(values)
    order = kept[np.argsort(values[kept], kind="stable")]
    numbers, owner = np.unique(values[order], return_inverse=True)
    runs = Runs(starts[order], ends[order], owner, len(numbers))
    counts = write_counts(runs, height * width)
    return {
        int(n): {"size": [height, width], "counts": c} for n, c in zip(numbers.tolist(), counts, strict=True)
    }
