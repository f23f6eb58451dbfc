"""Polygons filled inside RoIs by a GPU, as one operator for every compiler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def edges_of(
    points: np.ndarray, starts: np.ndarray, owner: np.ndarray, num_masks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, marks of polygons' last edges, and masks' first edges, for `fill_polygons`.

    points (V, 2); starts (P + 1,) of polygons; owner (P,), the mask of each polygon, ascending.
    """
    following = np.arange(1, len(points) + 1)
    following[starts[1:] - 1] = starts[:-1]
    last = np.zeros(len(points), np.int32)
    last[starts[1:] - 1] = 1
    edges = np.concatenate([points, points[following]], axis=1).astype(np.float32)
    first = starts[np.searchsorted(owner, np.arange(num_masks + 1))].astype(np.int32)
    return torch.from_numpy(edges), torch.from_numpy(last), torch.from_numpy(first)


@torch.library.custom_op("maskrcnn::fill_polygons", mutates_args=())
def fill_polygons(
    edges: Tensor, last: Tensor, starts: Tensor, boxes: Tensor, index: Tensor, size: int
) -> Tensor:
    """Fill mask `index[r]`, none where that is negative, within `boxes[r]`: (R, size, size) bool.

    edges (E, 4) float32, x, y to x, y in the boxes' pixels, polygon by polygon and mask by mask; last (E,) int32, 1 at
    a polygon's last edge; starts (N + 1,) int32, first edge of each mask.
    """
    from maskrcnn.ops import polygons_triton

    return polygons_triton.fill(edges, last, starts, boxes, index, size)


@fill_polygons.register_fake
def _(edges, last, starts, boxes, index, size):
    return boxes.new_empty((boxes.shape[0], size, size), dtype=torch.bool)
