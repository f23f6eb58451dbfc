"""Boxes of the parts of polygons inside a window, for many polygons at once."""

from __future__ import annotations

import numpy as np


def clipped_extents(
    points: np.ndarray, starts: np.ndarray, window: tuple[float, float, float, float] | None
) -> np.ndarray:
    """Boxes (P, 4) of polygons clipped to a window; x1 < x0 where nothing is inside. points (V, 2), starts (P + 1,),
    no polygon empty.

    The outline of polygon and window together is made of the polygon's edges cut to the window and of
    pieces of the window's border, which end at cut edges or at window corners inside the polygon. So the
    box is that of the cut edges and of those corners.
    """
    firsts = starts[:-1]
    if window is None:
        low, high = np.minimum.reduceat(points, firsts), np.maximum.reduceat(points, firsts)
        return np.concatenate([low, high], axis=1)
    lo, hi = np.array(window[:2]), np.array(window[2:])
    following = np.arange(1, len(points) + 1)
    following[starts[1:] - 1] = firsts
    a, b = points, points[following]
    enter, leave, hit = _cut_edges(a, b - a, lo, hi)
    ends = np.stack([a + enter * (b - a), a + leave * (b - a)])
    ends = np.clip(ends, lo, hi)  # rounding only: they lie inside
    low = np.minimum.reduceat(np.where(hit, ends.min(0), np.inf), firsts)
    high = np.maximum.reduceat(np.where(hit, ends.max(0), -np.inf), firsts)
    for corner in ((lo[0], lo[1]), (lo[0], hi[1]), (hi[0], lo[1]), (hi[0], hi[1])):
        inside = _contains(a, b, firsts, corner)
        low[inside] = np.minimum(low[inside], corner)
        high[inside] = np.maximum(high[inside], corner)
    return np.concatenate([low, high], axis=1)


def _cut_edges(
    a: np.ndarray, d: np.ndarray, lo: np.ndarray, hi: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip edges to the window by Liang and Barsky: the part enter..leave (V, 1) of each edge a + t d inside it, and
    a mask of the edges that have one.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.stack([(lo - a) / d, (hi - a) / d])
    still = d == 0
    outside = (still & ((a < lo) | (a > hi))).any(1, keepdims=True)
    enter = np.where(still, 0.0, t.min(0)).max(1, keepdims=True).clip(0, 1)
    leave = np.where(still, 1.0, t.max(0)).min(1, keepdims=True).clip(0, 1)
    past = np.where(still, 0.0, t.min(0)).max(1, keepdims=True) > 1
    short = np.where(still, 1.0, t.max(0)).min(1, keepdims=True) < 0
    return enter, leave, ~outside & ~past & ~short & (enter <= leave)


def _contains(a: np.ndarray, b: np.ndarray, firsts: np.ndarray, corner: tuple[float, float]) -> np.ndarray:
    """Mask of the polygons that contain the point, by the even-odd rule."""
    x, y = corner
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return np.add.reduceat(crosses & (at > x), firsts) % 2 == 1
