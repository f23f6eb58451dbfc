"""Storage of one image's drawn masks: flat polygons, and bitmaps cropped to their masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn.masks import coco_api
from maskrcnn.masks.rle import Runs, read_runs


@dataclass(slots=True, frozen=True, eq=False)
class MaskStore:
    """Drawn masks in their own pixels, flat. A mask has polygons or a bitmap, or neither if empty.

    size: (H, W) of the picture that they were drawn on;
    points: (V, 2) vertices of all polygons; polygon_starts: (P + 1,) into points;
    mask_starts: (N + 1,) into the polygons;
    bits: flat uint8 bitmaps, each cropped to its mask and column-major; bit_starts: (N + 1,) into bits;
    crops: (N, 4) int x, y, width, height of each bitmap.
    """

    size: tuple[int, int]
    points: np.ndarray
    polygon_starts: np.ndarray
    mask_starts: np.ndarray
    bits: np.ndarray
    bit_starts: np.ndarray
    crops: np.ndarray

    def bitmap(self, i: int) -> np.ndarray:
        """Bitmap of mask i, (width, height) uint8, a view; 0 x 0 where the mask is polygons."""
        return self.bits[self.bit_starts[i] : self.bit_starts[i + 1]].reshape(self.crops[i, 2:])


def read_bitmaps(rles: Mapping[int, Mapping[str, Any]], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode `rles`, those of n masks that are RLE, to bits, bit_starts and crops of a MaskStore."""
    names = np.fromiter(rles, np.int64, len(rles))
    crops = np.zeros((n, 4), np.int64)
    if not len(names):
        return np.zeros(0, np.uint8), np.zeros(n + 1, np.int64), crops
    try:
        runs = read_runs(list(rles.values()))
    except ValueError as error:  # "mask 3: ..." counts the RLEs only
        number, text = str(error).removeprefix("mask ").split(":", 1)
        raise ValueError(f"mask {names[int(number)]}:{text}") from None
    heights = np.array([r["size"][0] for r in rles.values()], np.int64)
    own, starts = _crops(runs, heights)
    crops[names] = own
    lengths = crops[:, 2] * crops[:, 3]
    bit_starts = offsets(lengths)
    base = bit_starts[:-1][names][runs.owner]
    steps = np.zeros(int(bit_starts[-1]) + 1, np.int8)
    np.add.at(steps, base + starts, 1)
    np.add.at(steps, base + starts + runs.ends - runs.starts, -1)
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8), bit_starts, crops


def _crops(runs: Runs, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop of each mask (x, y, width, height), and each run's start in its mask's column-major crop.

    A run over several columns makes the crop as high as the picture, so a run is one piece there too.
    """
    n, height = runs.num_masks, heights[runs.owner]
    first_column, top = np.divmod(runs.starts, height)
    last_column, bottom = np.divmod(runs.ends - 1, height)
    spans = last_column > first_column
    top[spans] = 0
    bottom[spans] = height[spans] - 1
    low = np.full((n, 2), np.iinfo(np.int64).max)
    high = np.full((n, 2), -1)
    np.minimum.at(low, runs.owner, np.stack([first_column, top], 1))
    np.maximum.at(high, runs.owner, np.stack([last_column, bottom], 1))
    low[high[:, 0] < 0] = 0
    crops = np.concatenate([low, high - low + 1], axis=1)
    crops[high[:, 0] < 0] = 0
    column, row = np.divmod(runs.starts, height)
    mine = crops[runs.owner]
    return crops, (column - mine[:, 0]) * mine[:, 3] + row - mine[:, 1]


def fill_one(store: MaskStore, polygons: range) -> tuple[np.ndarray, np.ndarray]:
    """Rasterise one mask's polygons to its bitmap (w, h) uint8 and its x, y, w, h; 0 x 0 where it covers no pixel."""
    height, width = store.size
    rings = [store.points[store.polygon_starts[p] : store.polygon_starts[p + 1]] for p in polygons]
    none = np.zeros((0, 0), np.uint8), np.zeros(4, np.int64)
    if not rings:
        return none
    least, most = np.min([r.min(0) for r in rings], axis=0), np.max([r.max(0) for r in rings], axis=0)
    # Far outside the picture is as good as just outside, and fits an integer.
    low = np.floor(least.clip(-1, [width, height])).astype(np.int64)
    high = np.ceil(most.clip(-1, [width, height])).astype(np.int64) + 1
    if (low < 0).any() or (high > [width, height]).any():
        low, high = np.zeros(2, np.int64), np.array([width, height])  # the edge cuts: fill the picture
    size = int(high[1] - low[1]), int(high[0] - low[0])
    # Moved by whole pixels, polygons are filled just the same.
    filled = coco_api.fill_polygons([(r - low).ravel() for r in rings], size).max(0).T
    columns, rows = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    if not len(columns):
        return none
    x, y, w, h = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return filled[x : x + w, y : y + h], np.array([low[0] + x, low[1] + y, w, h])


def offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Concatenate arange(first[0], last[0]), arange(first[1], last[1]), ... to one array."""
    lengths = last - first
    return np.repeat(first - offsets(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))
