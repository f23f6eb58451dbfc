"""Generalised intersection over union of boxes (Rezatofighi et al. 2019, arXiv 1902.09630)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.ops.boxes import box_area


def paired_giou(a: Tensor, b: Tensor, least: float = 1e-6) -> Tensor:
    """Generalised IoU of pairs: (N, 4), (N, 4) -> (N,), from -1 to 1.

    least: the smallest area that union and hull are taken for, as in MMDetection.
    """
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (box_area(a) + box_area(b) - shared).clamp(min=least)
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    hull = hull.clamp(min=0).prod(1).clamp(min=least)
    return shared / union - (hull - union) / hull
