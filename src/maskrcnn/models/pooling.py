"""Pooling of RoI features: RoIAlign from the level of a pyramid that suits the RoI's size (Lin et al. 2016, equation
1), or from C4's one map and then through the network's last stage (He et al. 2017, figure 4, left).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskrcnn.ops.boxes import box_area
from maskrcnn.ops.roi_align import roi_align

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a RoI of 224x224 belongs to P4
EPSILON = 1e-8  # detectron2's: a RoI a hair smaller belongs there too


def assign_levels(boxes: Tensor, min_level: int, max_level: int, epsilon: float = EPSILON) -> Tensor:
    """Level of each RoI, (R, 4) -> (R,) int64: floor(4 + log2(sqrt(area) / 224 + epsilon)) within the given range."""
    level = torch.floor(CANONICAL_LEVEL + torch.log2(box_area(boxes).sqrt() / CANONICAL_SIZE + epsilon))
    return level.clamp(min_level, max_level).to(torch.int64)


class RoIFeatures:
    """Feature maps of one batch that the heads pool their RoIs from.

    maps: (B, C, H, W) each, finest first, of `strides`. res5: what pooled RoIs go through before the heads see them,
    of stride 2 (C4); None otherwise. level_epsilon: see `assign_levels`; aligned, sampling_ratio: see
    `ops.roi_align`.
    """

    def __init__(
        self,
        maps: list[Tensor],
        strides: tuple[int, ...],
        res5: nn.Module | None = None,
        level_epsilon: float = EPSILON,
        aligned: bool = True,
        sampling_ratio: int = 0,
    ) -> None:
        self.maps, self.strides, self.res5, self.level_epsilon = maps, strides, res5, level_epsilon
        self.aligned, self.sampling_ratio = aligned, sampling_ratio
        self._last: tuple[list[Tensor], Tensor] | None = None  # boxes and what came of them

    def pool(self, boxes: list[Tensor], size: int) -> Tensor:
        """Pool the features of every image's boxes (R_i, 4), in the network's pixels: (R, C, size, size), images one
        after the other.
        """
        if self.res5 is None:
            return self.pool_rois(with_image_index(boxes), size)
        # In training the mask's RoIs are the first of the box head's, whose features they share.
        if self._last is None or not all(torch.equal(a[: len(b)], b) for a, b in zip(self._last[0], boxes)):
            self._last = boxes, self.pool_rois(with_image_index(boxes), size)
        parts = self._last[1].split([len(b) for b in self._last[0]])
        return torch.cat([part[: len(b)] for part, b in zip(parts, boxes, strict=True)])

    def pool_rois(self, rois: Tensor, size: int) -> Tensor:
        """Pool RoIs (R, 5), image and box: (R, C, size, size)."""
        how = (self.level_epsilon, self.aligned, self.sampling_ratio)
        if self.res5 is None:
            return pool_rois(self.maps, self.strides, rois, size, *how)
        return self.res5(pool_rois(self.maps, self.strides, rois, 2 * size, *how))


def with_image_index(boxes: list[Tensor]) -> Tensor:
    """Put the image's number in the batch before each box: (R, 5), index, x0, y0, x1, y1."""
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)])


def pool_rois(
    maps: list[Tensor],
    strides: tuple[int, ...],
    rois: Tensor,
    size: int,
    level_epsilon: float = EPSILON,
    aligned: bool = True,
    sampling_ratio: int = 0,
) -> Tensor:
    """Pool RoIs from a pyramid, each from the level that suits its size.

    maps: (B, C, H, W), finest first, of `strides`; rois: (R, 5), image and box in the network's pixels.
    Returns (R, C, size, size); by default aligned, with as many samples a bin as it has pixels.
    """
    if len(maps) == 1:
        return roi_align(maps[0], rois, size, 1 / strides[0], sampling_ratio, aligned)
    finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    levels = assign_levels(rois[:, 1:], finest, coarsest, level_epsilon) - finest
    parts, places = [], []
    for i, (feature, stride) in enumerate(zip(maps, strides, strict=True)):
        place = (levels == i).nonzero()[:, 0]
        # An empty level has no part in the result, but must have one in the gradient's graph once.
        if len(place) or (i == 0 and not len(rois)):
            parts.append(roi_align(feature, rois[place], size, 1 / stride, sampling_ratio, aligned))
            places.append(place)
    return torch.cat(parts)[torch.argsort(torch.cat(places))]
