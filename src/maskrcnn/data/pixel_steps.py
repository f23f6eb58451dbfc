"""Steps of augmentation on pixels alone, (3, h, w) uint8 or bands (C, h, w) float32: taken at once, or noted for a GPU.

What a step does to boxes and masks depends on sizes only. So a worker process can decide a view and change its ground
truth while the pixels travel as they were read; the GPU takes the steps. It resizes in float32 and rounds once: at most
a level of 255 from the CPU's fixed-point kernel (tests/data/test_pixel_steps.py). The other steps are the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

Step = Callable[[Tensor], Tensor]


class Noted:
    """Picture (3, h, w) uint8, or bands (C, h, w) float32, with steps for `taken`; `shape` is what comes of them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.shape, self.dtype = pixels.shape, pixels.dtype
        self.steps: list[Step] = []

    def taken(self, device: torch.device) -> Tensor:
        """Move the pixels to a device, and take the steps there."""
        image = self.pixels.to(device, non_blocking=True)
        for step in self.steps:
            image = step(image)
        return image

    def pin_memory(self) -> Noted:
        """Put the pixels into pinned memory, as PyTorch's loader asks for."""
        self.pixels = self.pixels.pin_memory()
        return self


Image = TypeVar("Image", Tensor, Noted)


def resized(image: Image, size: tuple[int, int], antialias: bool) -> Image:
    step = partial(F.resize, size=list(size), interpolation=InterpolationMode.BILINEAR, antialias=antialias)
    return _take(image, step, size)


def cropped(image: Image, top: int, left: int, height: int, width: int) -> Image:
    return _take(image, partial(_window, top=top, left=left, height=height, width=width), (height, width))


def mirrored(image: Image, axis: int) -> Image:
    """Mirror top and bottom (axis 1), or left and right (2)."""
    return _take(image, partial(torch.flip, dims=(axis,)), image.shape[1:])


def turned(image: Image, turns: int) -> Image:
    """Rotate by quarter turns counterclockwise."""
    height, width = image.shape[1:]
    size = (width, height) if turns % 2 else (height, width)
    return _take(image, partial(torch.rot90, k=turns, dims=(1, 2)), size)


def coloured(image: Image, step: Step) -> Image:
    """Take a step of colour, which leaves the size."""
    return _take(image, step, image.shape[1:])


def compact(image: Image) -> Image:
    """Lay the pixels out as (h, w, C) memory of their own, no view of a larger image."""
    return _take(image, _compact, image.shape[1:])


def _take(image: Image, step: Step, size: Any) -> Image:
    if isinstance(image, Tensor):
        return step(image)
    image.steps.append(step)
    image.shape = torch.Size((image.shape[0], *size))
    return image


def _window(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]


def _compact(image: Tensor) -> Tensor:
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
