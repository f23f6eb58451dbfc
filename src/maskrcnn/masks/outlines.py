"""Outlines of bitmaps: the polygons between pixels that are in a mask and pixels that are not.

An outline runs along the pixels' edges, so that its corners are whole numbers in the picture's continuous coordinates
and what it encloses is the mask, exactly. Polygons of COCO, LabelMe and YOLO cannot tell holes: `bridged` joins a
hole's outline to the one around it by a slit without width. Pixels that touch at a corner only belong to different
parts.
"""

from __future__ import annotations

import numpy as np

Ring = list[float]  # x, y, x, y, ...


def outlines(mask: np.ndarray, origin: tuple[int, int] = (0, 0), tolerance: float = 0.0) -> list[Ring]:
    """Trace the parts of a bitmap (h, w): a polygon [x0, y0, x1, y1, ...] each, the largest first, holes filled.

    origin: the (x, y) of the bitmap's first pixel in the picture.
    tolerance: corners are left out as long as the outline moves by at most so many pixels; 0 is exact.
    """
    return [outer for outer, *_ in parts_of(mask, origin, tolerance)]


def parts_of(mask: np.ndarray, origin: tuple[int, int] = (0, 0), tolerance: float = 0.0) -> list[list[Ring]]:
    """Trace the parts of a bitmap as `outlines` does, with their holes: [outline, hole, hole, ...] each.

    Outlines run clockwise as one sees the picture, holes the other way round.
    """
    loops = sorted(_loops(mask), key=lambda loop: -_signed_area(loop))
    parts = [[loop] for loop in loops if _signed_area(loop) > 0]
    for hole in loops[len(parts) :]:
        # The pixel above the hole's first corner is in the part that has the hole; of those around it, the least.
        x, y = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]]
        around = [part for part in parts if _inside(part[0], x + 0.5, y - 0.5)]
        around[-1].append(hole)
    return [
        [((_simplified(loop, tolerance) if tolerance > 0 else loop) + origin).ravel().astype(float).tolist()
         for loop in part]
        for part in parts
    ]  # fmt: skip


def bridged(part: list[Ring]) -> Ring:
    """Join the rings of a part, its outline and holes, to one ring, by slits without width.

    What the ring encloses, by the even-odd rule as by the winding rule, is the part without its holes: each slit is
    passed once in each direction.
    """
    joined = np.reshape(part[0], (-1, 2))
    for hole in sorted((np.reshape(ring, (-1, 2)) for ring in part[1:]), key=lambda ring: ring[:, 0].min()):
        distance = ((joined[:, None] - hole[None]) ** 2).sum(-1)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        way = np.concatenate([np.roll(hole, -there, axis=0), hole[there : there + 1]])
        joined = np.concatenate([joined[: here + 1], way, joined[here:]])
    return joined.ravel().tolist()


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


def _inside(loop: np.ndarray, x: float, y: float) -> bool:
    """Tell whether a point beside all corners lies in a loop."""
    a, b = loop, np.roll(loop, -1, axis=0)
    upright = (a[:, 1] > y) != (b[:, 1] > y)  # of a bitmap's outline, edges are upright or level
    return bool(np.count_nonzero(upright & (a[:, 0] > x)) % 2)


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
