"""Non-maximum suppression whose result has the shape of its input, for graphs of fixed size."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("maskrcnn::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Mark the boxes that greedy suppression keeps, in each of G groups by itself: (G, N, 4), (G, N) -> (G, N) bool.

    A box goes that overlaps a kept one of a higher score by more than `threshold`. A score of -inf takes no part and is
    not kept.
    """
    group, place = torch.isfinite(scores).nonzero(as_tuple=True)
    kept = torchvision.ops.batched_nms(boxes[group, place], scores[group, place], group, threshold)
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[group[kept], place[kept]] = True
    return keep


@suppress.register_fake
def _(boxes, scores, threshold):
    return torch.empty_like(scores, dtype=torch.bool)
