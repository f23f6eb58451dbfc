"""Pooling of RoI features: RoIAlign from the level of a pyramid that suits the RoI's size (Lin et al. 2016, equation
1), or from C4's one map and then through the network's last stage (He et al. 2017, figure 4, left).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskrcnn.models.places import RoIs, filled_rows
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
    `ops.roi_align`. fixed_size: compute empty places too, rather than let a shape depend on data.
    """

    def __init__(
        self,
        maps: list[Tensor],
        strides: tuple[int, ...],
        res5: nn.Module | None = None,
        level_epsilon: float = EPSILON,
        aligned: bool = True,
        sampling_ratio: int = 0,
        fixed_size: bool = False,
    ) -> None:
        self.maps, self.strides, self.res5, self.level_epsilon = maps, strides, res5, level_epsilon
        self.aligned, self.sampling_ratio, self.fixed_size = aligned, sampling_ratio, fixed_size
        self._last: tuple[RoIs, Tensor] | None = None  # RoIs and what came of them

    def rois(self, boxes: Tensor, valid: Tensor, first: int | None = None) -> RoIs:
        """Choose the places to compute of boxes (B, N, 4): here, and only here, those that are not valid are dropped.

        With fixed sizes all are computed, or the `first` of each image.
        """
        if not self.fixed_size:
            return RoIs(boxes, filled_rows(valid))
        B, N = valid.shape
        rows = torch.arange(B * N, device=boxes.device).view(B, N)
        return RoIs(boxes, rows[:, :first].flatten())

    def pool(self, rois: RoIs, size: int) -> Tensor:
        """Pool the features of RoIs: (R, C, size, size)."""
        if self.res5 is None:
            return self.pool_rois(rois.with_image_index(), size)
        # In training the mask's RoIs are some of the box head's, whose features they share.
        if self._last is not None and self._last[0].boxes is rois.boxes:
            return self._last[1][torch.searchsorted(self._last[0].rows, rois.rows)]
        self._last = rois, self.pool_rois(rois.with_image_index(), size)
        return self._last[1]

    def pool_rois(self, rois: Tensor, size: int) -> Tensor:
        """Pool RoIs (R, 5), image and box: (R, C, size, size)."""
        pool = self._every_level if self.fixed_size else self._own_level
        return pool(rois, size) if self.res5 is None else self.res5(pool(rois, 2 * size))

    def _own_level(self, rois: Tensor, size: int) -> Tensor:
        """Pool each RoI from the level that suits its size."""
        if len(self.maps) == 1:
            return self._align(0, rois, size)
        levels = self._levels(rois)
        parts, places = [], []
        for i in range(len(self.maps)):
            place = (levels == i).nonzero()[:, 0]
            # An empty level has no part in the result, but must have one in the gradient's graph once.
            if len(place) or (i == 0 and not len(rois)):
                parts.append(self._align(i, rois[place], size))
                places.append(place)
        return torch.cat(parts)[torch.argsort(torch.cat(places))]

    def _every_level(self, rois: Tensor, size: int) -> Tensor:
        """Do the same with no shape that depends on data: every level pools all RoIs, those of other levels shrunk to
        a point, which costs no sample.
        """
        levels, total = self._levels(rois), torch.zeros(())
        for i in range(len(self.maps)):
            here = ((levels == i) & (box_area(rois[:, 1:]) > 0))[:, None]  # runtimes divide by the extent
            own = torch.cat([rois[:, :1], torch.where(here, rois[:, 1:], 0)], dim=1)
            pooled = torch.where(here[..., None, None], self._align(i, own, size), 0)
            total = pooled if i == 0 else total + pooled
        return total

    def _levels(self, rois: Tensor) -> Tensor:
        finest, coarsest = (int(math.log2(stride)) for stride in (self.strides[0], self.strides[-1]))
        return assign_levels(rois[:, 1:], finest, coarsest, self.level_epsilon) - finest

    def _align(self, i: int, rois: Tensor, size: int) -> Tensor:
        return roi_align(self.maps[i], rois, size, 1 / self.strides[i], self.sampling_ratio, self.aligned)
