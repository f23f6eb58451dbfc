"""Steps of augmentation on pixels alone, (3, h, w) uint8 RGB: taken at once, or noted to be taken on a GPU.

What a step does to boxes and masks depends on sizes only. So a worker process can decide a view and change its ground
truth while the pixels travel as they were read; the GPU takes the steps. There resizing and colour are computed in
float32 and rounded: at most a level of 255 apart from the CPU's fixed-point kernels (tests/data/test_pixel_steps.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode


class Noted:
    """Picture (3, h, w) uint8 with steps that `taken` takes; `shape` is what comes of them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.shape = pixels.shape
        self.steps: list[tuple[str, tuple[Any, ...]]] = []

    def taken(self, device: torch.device) -> Tensor:
        """Move the pixels to a device, and take the steps there."""
        image = self.pixels.to(device, non_blocking=True)
        for name, arguments in self.steps:
            image = STEPS[name](image, *arguments)
        return image

    def pin_memory(self) -> Noted:
        """Put the pixels into pinned memory, as PyTorch's loader asks for."""
        self.pixels = self.pixels.pin_memory()
        return self


Image = TypeVar("Image", Tensor, Noted)


def resized(image: Image, size: tuple[int, int], antialias: bool) -> Image:
    return _step(image, "resized", (size, antialias), size)


def cropped(image: Image, top: int, left: int, height: int, width: int) -> Image:
    return _step(image, "cropped", (top, left, height, width), (height, width))


def mirrored(image: Image, axis: int) -> Image:
    """Mirror top and bottom (axis 1), or left and right (2)."""
    return _step(image, "mirrored", (axis,), image.shape[1:])


def turned(image: Image, turns: int) -> Image:
    """Rotate by quarter turns counterclockwise."""
    height, width = image.shape[1:]
    return _step(image, "turned", (turns,), (width, height) if turns % 2 else (height, width))


def coloured(image: Image, what: str, value: float) -> Image:
    """Change brightness, contrast, saturation (by a factor), hue (in turns of the colour circle), or make it grey."""
    return _step(image, "coloured", (what, value), image.shape[1:])


def compact(image: Image) -> Image:
    """Lay the pixels out as (h, w, 3) memory of their own, no view of a larger image."""
    return _step(image, "compact", (), image.shape[1:])


def _step(image: Image, name: str, arguments: tuple[Any, ...], size: Any) -> Image:
    if isinstance(image, Tensor):
        return STEPS[name](image, *arguments)
    image.steps.append((name, arguments))
    image.shape = torch.Size((3, *size))
    return image


def _resized(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=antialias)


def _cropped(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]


def _mirrored(image: Tensor, axis: int) -> Tensor:
    return image.flip(axis)


def _turned(image: Tensor, turns: int) -> Tensor:
    return image.rot90(turns, (1, 2))


def _coloured(image: Tensor, what: str, value: float) -> Tensor:
    if what == "grey":
        return F.rgb_to_grayscale(image, num_output_channels=3)
    return getattr(F, f"adjust_{what}")(image, value)


def _compact(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


STEPS: dict[str, Callable[..., Tensor]] = {
    "resized": _resized,
    "cropped": _cropped,
    "mirrored": _mirrored,
    "turned": _turned,
    "coloured": _coloured,
    "compact": _compact,
}
