"""Arrays of a file's bands to RGB of 8 bits, by the rules of `images.read`."""

from __future__ import annotations

import numpy as np


def to_rgb8(bands: np.ndarray) -> np.ndarray:
    """Convert (H, W, 1, 3 or 4) uint8 or uint16 to (H, W, 3) uint8 RGB; a fourth band is alpha, and dropped.

    16-bit grey is divided by 257 and rounded; of 16-bit colours the high byte counts.

    Raises:
        ValueError: other bands or another type, as a reason without the file's name.
    """
    count = bands.shape[2]
    check_bands(count, str(bands.dtype))
    if bands.dtype.itemsize == 2:
        bands = (bands.astype(np.uint32) + 128) // 257 if count == 1 else bands >> 8
    pixels = np.empty((*bands.shape[:2], 3), np.uint8)
    pixels[:] = bands[..., :3]
    return pixels


def check_bands(count: int, dtype: str) -> None:
    """Make sure that `to_rgb8` takes so many bands of a type, which is numpy's word for it.

    Raises:
        ValueError: it does not, as a reason without the file's name.
    """
    if count not in (1, 3, 4) or dtype not in ("uint8", "uint16"):
        bands = "1 band" if count == 1 else f"{count} bands"
        raise ValueError(f"expected grey or RGB of 8 or 16 bits, got {bands} of {dtype}. Convert it")
