"""Boxes: area, overlap, clipping, the regression targets of the R-CNN family, and NMS.

Boxes are (x0, y0, x1, y1), absolute and continuous; N boxes are (N, 4) float32 (float64 in float64 models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

# Regressed log sizes are cut here before exp(): 1000 / 16 is the largest factor a box may grow by.
MAX_LOG_SCALE = math.log(1000.0 / 16)

# (H, W) of one picture, or of each of B pictures.
Size = tuple[int, int] | list[tuple[int, int]] | Tensor


def numbers(values: Sequence[float] | Size, like: Tensor) -> Tensor:
    """Put a few numbers on `like`'s device, in its type; a GPU does not keep the host waiting for it."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=like.dtype)
    return tensor.to(like.device, like.dtype, non_blocking=True)


def box_area(boxes: Tensor) -> Tensor:
    """Area of each box in square pixels: (..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M); 0 where boxes do not meet."""
    width = torch.minimum(a[:, None, 2], b[None, :, 2]).sub_(torch.maximum(a[:, None, 0], b[None, :, 0]))
    height = torch.minimum(a[:, None, 3], b[None, :, 3]).sub_(torch.maximum(a[:, None, 1], b[None, :, 1]))
    intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = (box_area(a)[:, None] + box_area(b)[None, :]).sub_(intersection)
    # An empty box of no area meets nothing: 0 / 0 must be 0.
    return torch.where(intersection > 0, intersection / union, intersection.new_zeros(()))


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes (N, 4) to a picture of `size` (H, W), or (B, N, 4) to B pictures."""
    width_height = numbers(size, boxes).flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([width_height, width_height], dim=-1)[..., None, :])


def scale_boxes(boxes: Tensor, old_size: Size, new_size: Size) -> Tensor:
    """Scale boxes (N, 4) of a picture resized from `old_size` to `new_size`, or (B, N, 4) of B pictures."""
    old, new = numbers(old_size, boxes), numbers(new_size, boxes)
    factor = (new / old).flip(-1)
    return boxes * torch.cat([factor, factor], dim=-1)[..., None, :]


def nonempty(boxes: Tensor, min_side: float = 0.0) -> Tensor:
    """Mask of the finite boxes with a positive width and height, of `min_side` at least: (..., 4) -> (...) bool."""
    size = boxes[..., 2:] - boxes[..., :2]
    wide = size >= min_side if min_side > 0 else size > 0
    return wide.all(dim=-1) & torch.isfinite(boxes).all(dim=-1)


def encode_boxes(boxes: Tensor, targets: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Deltas (dx, dy, dw, dh) that move `boxes` onto `targets`, times `weights` (Girshick et al. 2013, C)."""
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    center, target_center = boxes[..., :2] + 0.5 * size, targets[..., :2] + 0.5 * target_size
    deltas = torch.cat([(target_center - center) / size, torch.log(target_size / size)], dim=-1)
    return deltas * numbers(weights, deltas)


def decode_boxes(
    deltas: Tensor,
    boxes: Tensor,
    weights: tuple[float, float, float, float],
    limit_shrinking: bool = False,
) -> Tensor:
    """Apply deltas to boxes, the inverse of `encode_boxes`: (..., 4), (..., 4) -> (..., 4), in the boxes' precision.

    A size grows by 1000 / 16 at most; with `limit_shrinking` it does not shrink further than that either.
    """
    deltas = deltas.to(boxes.dtype) / numbers(weights, boxes)
    size = boxes[..., 2:] - boxes[..., :2]
    center = deltas[..., :2] * size + (boxes[..., :2] + 0.5 * size)
    lowest = -MAX_LOG_SCALE if limit_shrinking else None
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(lowest, MAX_LOG_SCALE)) * size
    return torch.cat([center - half, center + half], dim=-1)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group. (N, 4), (N,), (N,) -> indices kept, best score first."""
    return torchvision.ops.batched_nms(boxes, scores.to(boxes.dtype), groups, threshold)
