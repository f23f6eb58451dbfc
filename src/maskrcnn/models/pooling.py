"""RoIAlign over a pyramid: each RoI is pooled from the level that suits its size (Lin et al. 2016, equation 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskrcnn.ops.boxes import box_area
from maskrcnn.ops.sampling import roi_align

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a RoI of 224x224 belongs to P4


def assign_levels(boxes: Tensor, min_level: int, max_level: int) -> Tensor:
    """(R, 4) -> (R,) int64 level, floor(4 + log2(sqrt(area) / 224)) within the given range."""
    level = torch.floor(CANONICAL_LEVEL + torch.log2(box_area(boxes).sqrt() / CANONICAL_SIZE + 1e-8))
    return level.clamp(min_level, max_level).to(torch.int64)


def pool_rois(features: list[Tensor], strides: tuple[int, ...], boxes: list[Tensor], size: int) -> Tensor:
    """Pool every image's boxes from its pyramid.

    features: maps (B, C, H, W), finest first, of `strides`; boxes: per image (R_i, 4) in the network's pixels.
    Returns (R, C, size, size), images one after the other; aligned, with as many samples a bin as it has pixels.
    """
    rois = torch.cat(
        [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]
    )  # (R, 5): image, x0, y0, x1, y1
    levels = assign_levels(rois[:, 1:], int(math.log2(strides[0])), int(math.log2(strides[-1])))
    levels -= int(math.log2(strides[0]))
    if len(features) == 1:
        return roi_align(features[0], rois, size, 1 / strides[0], 0, True)
    parts, places = [], []
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        place = (levels == i).nonzero()[:, 0]
        # An empty level has no part in the result, but must have one in the gradient's graph once.
        if len(place) or (i == 0 and not len(rois)):
            parts.append(roi_align(feature, rois[place], size, 1 / stride, 0, True))
            places.append(place)
    order = torch.argsort(torch.cat(places))
    return torch.cat(parts)[order]
