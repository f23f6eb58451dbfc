"""OpenCV's bilinear resize of uint8 pictures, bit for bit, without OpenCV.

MMDetection's models were trained and evaluated on its results. Weights have 11 bits, sums are cut as OpenCV cuts
them, there is no antialiasing, and exact halving is the rounded mean of two by two pixels.
"""

from __future__ import annotations

import numpy as np

BITS = 11


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture bilinearly as `cv2.resize` with INTER_LINEAR does: (H, W, C) uint8 -> (*size, C) uint8."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if (height, width) == (2 * size[0], 2 * size[1]):
        pairs = image[0::2].astype(np.uint16) + image[1::2]
        return ((pairs[:, 0::2] + pairs[:, 1::2] + 2) >> 2).astype(np.uint8)
    left, right_weight = _places(width, size[1])
    top, lower_weight = _places(height, size[0])
    # Columns outside the picture take its border; so do rows, but by their index: their weights round apart.
    right_weight[(left < 0) | (left >= width - 1)] = 0
    left, right = left.clip(0, width - 1), (left + 1).clip(0, width - 1)
    upper, lower = top.clip(0, height - 1), (top + 1).clip(0, height - 1)
    a, b = (w[:, None] for w in _fixed_point(right_weight))
    pixels = image.astype(np.int32)
    rows = (pixels[:, left] * a + pixels[:, right] * b) >> 4  # (H, w, C)
    a, b = (w[:, None, None] for w in _fixed_point(lower_weight))
    out = rows[upper] * a
    out >>= 16
    below = rows[lower] * b
    below >>= 16
    out += below
    out += 2
    out >>= 2
    return out.astype(np.uint8)


def _places(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sampling places along one axis: for each new pixel the pixel before its centre, (n,) int64, and the next one's
    weight, (n,) float32.
    """
    scale = 1 / (new_size / size)
    place = ((np.arange(new_size) + 0.5) * scale - 0.5).astype(np.float32)
    before = np.floor(place)
    return before.astype(np.int64), place - before


def _fixed_point(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed-point weights of the two neighbours, int32, each rounded by itself, halves to even."""
    one = np.float32(1 << BITS)
    return np.rint((1 - weight) * one).astype(np.int32), np.rint(weight * one).astype(np.int32)
