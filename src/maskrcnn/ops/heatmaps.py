"""Key points as cells of heat maps over their boxes, and back: He et al. 2017, section 5, with detectron2's details.

Shape letters: R boxes, P key points, M heat-map cells a side. Points are (x, y, visibility) in learning and (x, y,
score) in decoding, continuous, in the network's pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def has_point_inside(boxes: Tensor, points: Tensor) -> Tensor:
    """Mask of the boxes (..., 4) that contain a visible point of their (..., P, 3), edges included: (...) bool."""
    xy, low, high = points[..., :2], boxes[..., None, :2], boxes[..., None, 2:]
    return ((xy >= low).all(-1) & (xy <= high).all(-1) & (points[..., 2] > 0)).any(-1)


def heatmap_cells(points: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cells of points in their boxes' heat maps of `size` cells a side.

    points (R, P, 3) x, y, visibility; boxes (R, 4). Returns the cell (R, P) int64, row by row, and which points
    count, (R, P) bool: those that are visible and in the map. A point on the right or lower edge is in the last cell.
    """
    low, extent = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    xy = ((points[..., :2] - low) * (size / extent)).floor().long()
    xy = torch.where(points[..., :2] == boxes[:, None, 2:], size - 1, xy)
    counts = (xy >= 0).all(2) & (xy < size).all(2) & (points[..., 2] > 0)
    return xy[..., 1] * size + xy[..., 0], counts


@torch.library.custom_op("maskrcnn::decode_heatmaps", mutates_args=())
def decode_heatmaps(logits: Tensor, boxes: Tensor) -> Tensor:
    """Decode heat maps (R, P, M, M) over boxes (R, 4) to the most probable place of each point, (R, P, 3).

    As detectron2: a map is enlarged (bicubic) to one value a pixel of its box, whose size is rounded up; the point
    is the middle of the best pixel; the score is exp(best) over the sum of exp over the M x M cells of the map.

    Bicubic enlargement is a product with one matrix on each side, the same for all maps of one height or width:
    two matrix multiplications a box instead of 16 reads a pixel.
    """
    num_points, size = logits.shape[1:3]
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = extent.ceil()
    best = logits.new_zeros(len(logits), num_points)
    place = torch.zeros(len(logits), num_points, dtype=torch.int64, device=logits.device)
    for i, (width, height) in enumerate(pixels.long().tolist()):  # one transfer
        rows, columns = (_enlargement(size, n, logits.dtype, logits.device) for n in (height, width))
        enlarged = (rows @ logits[i]) @ columns.T  # (P, height, width)
        best[i], place[i] = enlarged.flatten(1).max(1)
    columns = pixels[:, :1].long()
    xy = torch.stack([place % columns, place // columns], dim=2).to(boxes.dtype) + 0.5
    xy = xy * (extent / pixels)[:, None] + boxes[:, None, :2]
    scores = (best - logits.flatten(2).logsumexp(2)).exp()
    # Enlargement overshoots: over maps as steep as an untrained network's, to infinity.
    scores = scores.clamp(max=torch.finfo(scores.dtype).max)
    return torch.cat([xy, scores[..., None].to(xy.dtype)], dim=2)


@decode_heatmaps.register_fake
def _(logits, boxes):
    return torch.empty((*logits.shape[:2], 3), dtype=boxes.dtype, device=boxes.device)


def _enlargement(size: int, new_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (new_size, size) of a bicubic resize along one side."""
    eye = torch.eye(size, dtype=dtype, device=device)[None, None]
    return F.interpolate(eye, (new_size, size), mode="bicubic", align_corners=False)[0, 0]
