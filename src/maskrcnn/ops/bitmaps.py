"""Bitmaps read inside RoIs by a GPU, as one operator for every compiler."""

from __future__ import annotations

import torch
from torch import Tensor


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
