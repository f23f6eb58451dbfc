"""Drawn shapes and label pictures as COCO segmentations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.masks.rle import Runs, write_counts

if TYPE_CHECKING:
    from PIL import Image

# A segmentation that could not be read, which the checks list as broken and not as absent
BROKEN = [[math.nan] * 6]
_AROUND = 64  # corners of a circle: its area comes out 0.2 % small
_LARGEST_LABEL = 65535  # what 16 bits hold
_HALF = 128  # of 255


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """Polygon [x, y, x, y, ...] of a rectangle's four corners."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """Polygon [x, y, ...] around an ellipse; `angle` in radians turns it from x towards y."""
    ring = []
    for k in range(_AROUND):
        x, y = rx * math.cos(2 * math.pi * k / _AROUND), ry * math.sin(2 * math.pi * k / _AROUND)
        ring += [
            cx + x * math.cos(angle) - y * math.sin(angle),
            cy + x * math.sin(angle) + y * math.cos(angle),
        ]
    return ring


def ring_of(points: Any) -> list[float]:
    """Flatten a list of pairs of numbers (or of texts that are numbers) to [x, y, x, y, ...].

    Raises:
        TypeError, ValueError, OverflowError: it is something else.
    """
    if not isinstance(points, list | tuple) or not all(
        isinstance(p, list | tuple) and len(p) == 2 for p in points
    ):
        raise ValueError("not a list of points")
    return [float(v) for point in points for v in point]


def size_from(height: Any, width: Any) -> dict[str, int]:
    """Read a label file's two values to {"height", "width"}; {} if they are not whole numbers above 0."""
    good = all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 31 for v in (height, width))
    return {"height": height, "width": width} if good else {}


def size_of(path: Path) -> dict[str, int]:
    """Read an image file's size to {"height", "width"} for a COCO image; {} if it cannot be read, which the checks
    report.
    """
    from maskrcnn.images.read import image_size

    try:
        height, width = image_size(path)
    except UserError:
        return {}
    return {"height": height, "width": width}


def read_labels(path: Path) -> np.ndarray:
    """Read the numbers in a grey or palette picture, (H, W): a palette's indices, not its colours.

    Raises:
        UserError: unreadable or too large, a colour picture, a JPEG (its numbers are not what was saved), or
            numbers that are none of 0 to 65535.
    """
    from maskrcnn.images.read import stored_picture

    with stored_picture(path) as picture:
        form, mode, pixels = picture.format, picture.mode, np.asarray(picture)
    if pixels.ndim != 2 or mode == "F":
        raise UserError(f"{path}: expected a label picture, grey or with a palette, got one of mode {mode}.")
    if form == "JPEG":
        raise UserError(
            f"{path}: expected a label picture as it was painted, got a JPEG, which alters numbers."
        )
    pixels = pixels.astype(np.int32)
    if pixels.size and (pixels.min() < 0 or pixels.max() > _LARGEST_LABEL):
        raise UserError(
            f"{path}: expected label numbers from 0 to {_LARGEST_LABEL}, got {pixels.min()} to {pixels.max()}."
        )
    return pixels


def foreground(picture: Image.Image) -> np.ndarray:
    """Read a mask picture, (H, W) bool: True where it is not black and not transparent.

    In a JPEG, whose blacks are not quite black, from half of white on. Where it is black wherever it is opaque, what
    is opaque counts: an object painted in black on transparent ground.
    """
    lossy = picture.format == "JPEG"
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= _HALF if has_alpha else None
    picture.info.pop("transparency", None)  # `convert` would warn of it
    painted = np.asarray(picture.convert("L")) >= (_HALF if lossy else 1)
    if opaque is None or opaque.all() or not opaque.any():
        return painted
    return painted & opaque if (painted & opaque).any() else opaque


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
