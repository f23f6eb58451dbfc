"""Resize of test time: each original's rounding of the size, and its filter."""

from __future__ import annotations

from typing import Literal

import numpy as np

from maskrcnn.images.opencv_resize import resize_bilinear

Resize = Literal["pillow", "opencv", "torchvision"]  # as `InputConfig.resize`


def resize_size(
    height: int, width: int, min_size: int, max_size: int, resize: Resize = "pillow"
) -> tuple[int, int]:
    """Compute the (H, W) with the shortest side `min_size`, or less where the longest would exceed `max_size`.

    Rounded int(x + 0.5), with x computed as detectron2 does, or for "opencv" as MMDetection does: they can be a
    pixel apart. torchvision rounds down.
    """
    if resize != "pillow":
        scale = min(max_size / max(height, width), min_size / min(height, width))
        half = 0.5 if resize == "opencv" else 0.0
        return max(1, int(height * scale + half)), max(1, int(width * scale + half))
    scale = min_size / min(height, width)
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    longest = max(new_height, new_width)
    if longest > max_size:
        shrink = max_size / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: np.ndarray, size: tuple[int, int], resize: Resize = "pillow") -> np.ndarray:
    """Resize (H, W, C) uint8 or float32 to (*size, C), by Pillow's antialiased bilinear filter or OpenCV's plain one,
    both uint8, or by torchvision's detectors' plain one, float32.

    The original models were evaluated with one of these on uint8; torchvision's differ by up to 2 levels. Bands in
    float32, which no original has, are resized by Pillow's filter in place of OpenCV's.
    """
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    if resize == "torchvision":
        return _interpolated(_interpolated(image.astype(np.float32), size[0], 0), size[1], 1)
    if image.dtype == np.float32:
        bands = (Image.fromarray(image[..., k]) for k in range(image.shape[2]))
        how = ((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.stack([np.asarray(band.resize(*how)) for band in bands], axis=2)
    if resize == "opencv":
        return resize_bilinear(image, size)
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(resized)


def _interpolated(image: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Interpolate a float32 image along an axis to `length`, as `torch.nn.functional.interpolate` does."""
    scale = float(np.float32(image.shape[axis] / length))
    place = ((np.arange(length) + 0.5) * scale - 0.5).clip(0).astype(np.float32)  # rounded once, as by an FMA
    first = place.astype(np.int64)
    weight = (place - first).reshape(-1, *[1] * (2 - axis)).astype(np.float32)
    out = image.take((first + 1).clip(max=image.shape[axis] - 1), axis)
    out *= weight
    out += image.take(first, axis) * (1 - weight)
    return out
