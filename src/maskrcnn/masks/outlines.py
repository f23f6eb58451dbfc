"""Outlines of bitmaps: the polygons between pixels that are in a mask and pixels that are not.

An outline runs along the pixels' edges, so that its corners are whole numbers in the picture's continuous coordinates
and what it encloses is the mask, exactly, but for holes, which polygons of COCO and LabelMe cannot tell. Pixels that
touch at a corner only belong to different parts.
"""

from __future__ import annotations

import numpy as np


def outlines(mask: np.ndarray, origin: tuple[int, int] = (0, 0), tolerance: float = 0.0) -> list[list[float]]:
    """Trace the parts of a bitmap (h, w): a polygon [x0, y0, x1, y1, ...] each, the largest first, holes filled.

    origin: the (x, y) of the bitmap's first pixel in the picture.
    tolerance: corners are left out as long as the outline moves by at most so many pixels; 0 is exact.
    """
    parts = []
    for loop in _loops(mask):
        if _signed_area(loop) <= 0:  # a hole's outline runs the other way round
            continue
        parts.append(_simplified(loop, tolerance) if tolerance > 0 else loop)
    parts.sort(key=lambda loop: -_signed_area(loop))
    return [(loop + origin).ravel().astype(float).tolist() for loop in parts]


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a bitmap, (P, 2) x, y of their corners each, clockwise around what is in the mask."""
    points, along_x, along_y = _corners(mask)
    seen = [False] * len(points)
    loops = []
    for start in range(len(points)):
        if seen[start]:
            continue
        loop, corner = [], start
        while not seen[corner]:
            other = along_x[corner]
            seen[corner] = seen[other] = True
            loop += [corner, other]
            corner = along_y[other]
        x, y = points[start]
        # The first corner by rows is a loop's upper left one. Right and down from there lies the mask, or a hole.
        loops.append(points[loop] if mask[y, x] else points[loop][::-1])
    return loops


def _corners(mask: np.ndarray) -> tuple[np.ndarray, list[int], list[int]]:
    """Corners of a bitmap's outlines, (N, 2) x, y by rows, and of each the other end of its two edges.

    A row's corners are joined in pairs from left to right, a column's from top to bottom. Where two pixels touch at a
    corner only, that corner is there twice.
    """
    framed = np.pad(np.asarray(mask, bool), 1).astype(np.int8)
    upper_left, upper_right = framed[:-1, :-1], framed[:-1, 1:]
    lower_left, lower_right = framed[1:, :-1], framed[1:, 1:]
    is_corner = (upper_left + upper_right + lower_left + lower_right) % 2 == 1
    touching = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    y, x = np.nonzero(is_corner | touching)
    twice = touching[y, x]
    first = np.repeat(np.arange(len(x)), 1 + twice)
    y, x = y[first], x[first]
    second = np.r_[False, first[1:] == first[:-1]]  # the right one of a pair in its row
    # In its column the right one is the lower one if the pixels touch from the upper left to the lower right.
    falling = upper_left[y, x] == 1
    lower = np.where(falling, second, ~second)
    along_x, along_y = np.arange(len(x)) ^ 1, np.empty(len(x), np.int64)
    order = np.lexsort((lower & twice[first], y, x))
    along_y[order] = order[np.arange(len(x)) ^ 1]
    return np.stack([x, y], 1), along_x.tolist(), along_y.tolist()


def _signed_area(loop: np.ndarray) -> float:
    x, y = loop.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners by Douglas and Peucker's rule, between the first corner and the one farthest from it."""
    far = int(((loop - loop[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([loop, loop[:1]]).astype(float)
    kept = np.zeros(len(closed), bool)
    kept[[0, far, -1]] = True
    todo = [(0, far), (far, len(loop))]
    while todo:
        a, b = todo.pop()
        if b - a < 2:
            continue
        way, inner = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        length = max(float(np.hypot(*way)), 1e-9)
        off = np.abs(inner[:, 0] * way[1] - inner[:, 1] * way[0]) / length
        worst = int(off.argmax())
        if off[worst] > tolerance:
            middle = a + 1 + worst
            kept[middle] = True
            todo += [(a, middle), (middle, b)]
    simple = loop[kept[:-1]]
    return simple if len(simple) >= 3 else loop
