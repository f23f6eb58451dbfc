"""Anchors: the reference boxes of the RPN (Ren et al. 2015, section 3.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def cell_anchors(sizes: tuple[float, ...], aspect_ratios: tuple[float, ...]) -> Tensor:
    """Anchors around the origin, (A, 4) float32, sizes outer and ratios inner, of area size² and height/width ratio."""
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes)


def grid_anchors(cell: Tensor, size: tuple[int, int], stride: int | tuple[int, int]) -> Tensor:
    """Anchors `cell` (A, 4) moved to every place of a map: (H * W * A, 4), ordered (H, W, A), unrounded, without
    offset.

    stride: pixels between two places, or those down and across.
    """
    down, across = (stride, stride) if isinstance(stride, int) else stride
    height, width = size
    x = torch.arange(width, device=cell.device) * float(across)
    y = torch.arange(height, device=cell.device) * float(down)
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    shift = torch.stack([x, y, x, y], dim=-1).to(cell.dtype)
    return (shift[:, :, None] + cell).reshape(-1, 4)
