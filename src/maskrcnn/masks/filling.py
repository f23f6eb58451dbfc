"""Polygons filled as the COCO API fills them (`rleFrPoly` of its maskApi.c), in numpy, where no library for it is
installed.

An outline is walked in steps of a fifth of a pixel; where it passes the middle of a column, the column changes between
inside and outside from the next row on.
"""

from __future__ import annotations

import numpy as np

SCALE = 5


def fill_polygon(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill a polygon (x, y, x, y, ...) in a picture of size (H, W): (H, W) uint8 of 0 and 1."""
    height, width = size
    corners = (SCALE * np.asarray(polygon, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    u, v = _walk(corners, np.roll(corners, -1, axis=0))
    left, before = u[1:] < u[:-1], v[:-1]
    x = (np.where(left, u[1:], u[1:] - 1) + 0.5) / SCALE - 0.5
    y = np.ceil(((np.minimum(v[1:], before) + 0.5) / SCALE - 0.5).clip(0, height))
    passed = (u[1:] != u[:-1]) & (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    changes = (x[passed] * height + y[passed]).astype(np.int64)
    inside = np.bincount(changes, minlength=height * width + 1)[: height * width].cumsum() & 1
    return inside.astype(np.uint8).reshape(width, height).T


def _walk(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places x and y of all steps along the edges, each from its start to its end."""
    extent = abs(end - start)
    steep = extent[:, 0] < extent[:, 1]
    along = steep.astype(np.int64)  # the axis with a place at every step
    each, length = np.arange(len(start)), extent.max(1)
    flipped = start[each, along] > end[each, along]
    low, high = (np.where(flipped[:, None], a, b) for a, b in ((end, start), (start, end)))
    slope = (high - low)[each, 1 - along] / np.maximum(length, 1)
    edge = np.repeat(each, length + 1)
    step = np.arange(len(edge)) - np.repeat((length + 1).cumsum() - length - 1, length + 1)
    step = np.where(flipped[edge], length[edge] - step, step)
    major = low[each, along][edge] + step
    minor = (low[each, 1 - along][edge] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(steep[edge], minor, major), np.where(steep[edge], major, minor)
