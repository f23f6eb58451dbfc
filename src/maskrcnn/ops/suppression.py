"""Non-maximum suppression with a fixed number of results, one operator for every compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.ops.boxes import batched_nms
from maskrcnn.ops.sampling import use_triton


@torch.library.custom_op("maskrcnn::suppress", mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, threshold: float, limit: int
) -> Tensor:
    """Choose boxes by greedy suppression within the groups of each image: (B, limit) indices, best first, -1 after
    the last.

    boxes (B, N, 4); scores (B, N), of which -inf takes no part; groups (B, N) int64, from 0 to num_groups - 1. A box
    goes that overlaps a better one of its group that stays by more than `threshold`. On a GPU with Triton nothing of it
    asks the host for a size.
    """
    if use_triton(boxes) and boxes.dtype != torch.float64:
        from maskrcnn.ops import suppression_triton

        return suppression_triton.suppress(boxes, scores, groups, threshold, limit)
    chosen = torch.full((len(boxes), limit), -1, dtype=torch.int64, device=boxes.device)
    for i in range(len(boxes)):
        there = torch.isfinite(scores[i]).nonzero()[:, 0]
        kept = batched_nms(boxes[i, there], scores[i, there], groups[i, there], threshold)[:limit]
        chosen[i, : len(kept)] = there[kept]
    return chosen


@suppress.register_fake
def _(boxes, scores, groups, num_groups, threshold, limit):
    return boxes.new_empty((boxes.shape[0], limit), dtype=torch.int64)
