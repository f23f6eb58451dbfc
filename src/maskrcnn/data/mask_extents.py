"""Usable parts of drawn masks, and the boxes around them: array arithmetic over a whole data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskrcnn.data.coco_arrays import RLE
from maskrcnn.masks.rle import Runs, read_runs

SOUND, ODD, SHORT, NOT_FINITE, FLAT, FAR = range(6)  # what is wrong with a polygon ring
FARTHEST = 1 << 20  # pixels from the origin, more than any picture has
_AT_A_TIME = 1 << 16  # rings, so that intermediate arrays stay small
_RLES_AT_A_TIME = 1 << 12


def measure_rings(points: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check and measure rings: (R,) uint8, the fault of each, and (R, 4) float32 boxes around the sound ones (others
    empty).

    points: flat x, y, x, y, ...; offsets: (R + 1,) into the numbers.
    """
    num_rings = len(offsets) - 1
    problem = np.empty(num_rings, np.uint8)
    extents = np.empty((num_rings, 4), np.float32)
    for a in range(0, num_rings, _AT_A_TIME):
        b = min(a + _AT_A_TIME, num_rings)
        part = points[offsets[a] : offsets[b]]
        problem[a:b], extents[a:b] = _measure(part, offsets[a : b + 1] - offsets[a])
    return problem, extents


def _measure(points: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(offsets)
    problem = np.where(lengths % 2 == 1, ODD, np.where(lengths < 6, SHORT, SOUND)).astype(np.uint8)
    extents = np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf], np.float32), (len(lengths), 1))
    whole = problem == SOUND
    if not whole.any():
        return problem, extents
    xy = points[np.repeat(whole, lengths)].reshape(-1, 2).astype(np.float64)
    counts = lengths[whole] // 2
    ends = np.cumsum(counts)
    starts = ends - counts
    infinite = np.add.reduceat((~np.isfinite(xy)).any(1), starts) > 0
    xy[~np.isfinite(xy)] = 0
    low, high = np.minimum.reduceat(xy, starts), np.maximum.reduceat(xy, starts)
    far = np.maximum(-low, high).max(1) > FARTHEST
    xy[np.repeat(far, counts)] = 0
    origin = np.where(far[:, None], 0, low)  # small numbers: less is lost when the products cancel
    xy -= np.repeat(origin, counts, axis=0)
    after = np.arange(1, len(xy) + 1)
    after[ends - 1] = starts
    area = np.add.reduceat(xy[:, 0] * xy[after, 1] - xy[after, 0] * xy[:, 1], starts) / 2
    flat = np.abs(area) < 1e-3
    for k in np.flatnonzero(flat & ~infinite & ~far):  # a bow tie has no net area, but is not flat
        flat[k] = _thickness(xy[starts[k] : ends[k]]) < 1e-3
    problem[whole] = np.select([infinite, far, flat], [NOT_FINITE, FAR, FLAT], SOUND)
    extents[whole] = np.concatenate([low, high], axis=1)
    extents[problem != SOUND] = (np.inf, np.inf, -np.inf, -np.inf)
    return problem, extents


def _thickness(xy: np.ndarray) -> float:
    """Largest distance of points from the line through two of them that are far apart, in pixels."""
    from_first = xy - xy[0]
    along = from_first[np.argmax((from_first**2).sum(1))]
    length = np.hypot(*along)
    cross = from_first[:, 0] * along[1] - from_first[:, 1] * along[0]
    return float(np.abs(cross).max() / length) if length else 0.0


def merge_rings(extents: np.ndarray, rings_of: np.ndarray) -> np.ndarray:
    """Boxes (m, 4) around the rings of each annotation; empty (inf, inf, -inf, -inf) without any."""
    merged = np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf], np.float32), (len(rings_of) - 1, 1))
    some = np.diff(rings_of) > 0
    if some.any():
        starts = rings_of[:-1][some]
        merged[some, :2] = np.minimum.reduceat(extents[:, :2], starts)
        merged[some, 2:] = np.maximum.reduceat(extents[:, 2:], starts)
    return merged


def measure_rles(arrays: Mapping[str, np.ndarray], extents: np.ndarray) -> dict[int, str]:
    """Write the box around each RLE mask into `extents` (m, 4); returns annotation -> fault of its RLE."""
    problems: dict[int, str] = {}
    index = np.flatnonzero(arrays["mask_kind"] == RLE)
    for a in range(0, len(index), _RLES_AT_A_TIME):
        part = index[a : a + _RLES_AT_A_TIME]
        try:
            extents[part] = _run_boxes(_runs(arrays, part), arrays["rle_sizes"][part, 0])
        except ValueError:  # one of them is broken: which?
            for j in part:
                try:
                    extents[j] = _run_boxes(_runs(arrays, [j]), arrays["rle_sizes"][j : j + 1, 0])[0]
                except ValueError as e:
                    problems[int(j)] = str(e).removeprefix("mask 0: ")
    return problems


def _runs(arrays: Mapping[str, np.ndarray], index: np.ndarray | list[int]) -> Runs:
    offsets, text = arrays["rle_offsets"], arrays["rle"]
    return read_runs(
        [
            {"size": arrays["rle_sizes"][j].tolist(), "counts": text[offsets[j] : offsets[j + 1]].tobytes()}
            for j in index
        ]
    )


def _run_boxes(runs: Runs, heights: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) around the foreground of n masks; (inf, inf, -inf, -inf) for a mask without any."""
    height = heights[runs.owner]
    left, top = np.divmod(runs.starts, height)
    right, bottom = np.divmod(runs.ends - 1, height)
    spans = right > left  # over the end of a column: touches its bottom and the next one's top
    top[spans], bottom[spans] = 0, height[spans] - 1
    boxes = np.tile(np.array([np.inf, np.inf, -np.inf, -np.inf], np.float32), (runs.num_masks, 1))
    np.minimum.at(boxes[:, :2], runs.owner, np.stack([left, top], 1).astype(np.float32))
    np.maximum.at(boxes[:, 2:], runs.owner, np.stack([right + 1, bottom + 1], 1).astype(np.float32))
    return boxes


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) and (..., 4), 0 where neither has an area."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return overlap / np.maximum(areas[0] + areas[1] - overlap, 1e-9)
