"""Bitmaps read inside RoIs by a GPU, as one operator for every compiler; and at points, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.ops.boxes import numbers


@torch.library.custom_op("maskrcnn::crop_bitmaps", mutates_args=())
def crop_bitmaps(
    bits: Tensor,
    starts: Tensor,
    crops: Tensor,
    picture: list[int],
    boxes: Tensor,
    index: Tensor,
    size: int,
    swapped: bool,
) -> Tensor:
    """Read mask `index[r]`, none where that is negative, within `boxes[r]`: (R, size, size) bool.

    bits: flat uint8 bitmaps, each cropped to its mask and column-major; starts (N,) int64 of each; crops (N, 4) int32
    x, y, width, height; picture: (H, W) that they were drawn on; boxes (R, 4) float32 in its pixels, of which one with
    x1 < x0 is read right to left; swapped: the answer's rows are columns.
    """
    from maskrcnn.ops import bitmaps_triton

    return bitmaps_triton.read(bits, starts, crops, (picture[0], picture[1]), boxes, index, size, swapped)


@crop_bitmaps.register_fake
def _(bits, starts, crops, picture, boxes, index, size, swapped):
    return boxes.new_empty((boxes.shape[0], size, size), dtype=torch.bool)


def read_bits(bits: Tensor, starts: Tensor, crops: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """Read mask `index[r]` bilinearly at points (R, P, 2), x and y in its picture's pixels: (R, P) float32, 0 for a
    negative index. A pixel's value is at its centre, and all around a mask is 0.

    bits, starts (N + 1,), crops: as of `crop_bitmaps`.
    """
    mask = index.clamp(min=0)
    offset, extent = crops[mask][:, None].split(2, dim=2)  # (R, 1, 2) each
    places = points - 0.5 - offset
    low = places.floor()
    share = places - low
    read = torch.zeros(points.shape[:2], device=points.device, dtype=points.dtype)
    if not len(bits):
        return read.float()
    for dx in (0, 1):
        for dy in (0, 1):
            cell = low.long() + numbers((dx, dy), index)
            inside = ((cell >= 0) & (cell < extent)).all(2) & (index >= 0)[:, None]
            at = starts[mask][:, None] + cell[..., 0] * extent[..., 1] + cell[..., 1]
            x, y = (share[..., k] if d else 1 - share[..., k] for k, d in enumerate((dx, dy)))
            read += torch.where(inside, bits[torch.where(inside, at, 0)] * (x * y), 0)
    return read.float()
