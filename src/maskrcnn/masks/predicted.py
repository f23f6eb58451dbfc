"""Predicted masks that stay small: M x M probabilities with their box, until someone asks for pixels.

Pixels are detectron2's: each picture pixel's centre is looked up in the M x M map stretched over the box
(bilinear, cell centres, zero outside the map) and is foreground at `threshold` or above. Only the pixels of
the box and one around it are ever computed; larger boxes in strips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.masks.rle import Runs, bitmap_runs, merge_touching, write_counts
from maskrcnn.ops.indexing import chosen

STRIP_PIXELS = 1 << 20  # of a crop at a time
SAMPLE_ALL_PIXELS = 1 << 13  # below this, looking which pixels need sampling costs more than sampling
UNSURE = 2
MARGIN = 1e-4  # more than float32 rounds a place or a sample by


@dataclass(slots=True, eq=False)
class PredictedMasks:
    """Predicted masks of one picture, N of them.

    probs: (N, M, M) after the sigmoid; boxes: (N, 4) float32 in the picture's pixels;
    image_size: the picture's (H, W). `np.asarray(masks)` is (N, H, W) bool.
    """

    probs: Tensor
    boxes: Tensor
    image_size: tuple[int, int]
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (N, H, W) of the array that these masks stand for."""
        return (len(self), *self.image_size)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice | list[int] | Tensor | np.ndarray) -> PredictedMasks: ...
    def __getitem__(self, index: Any) -> PredictedMasks | np.ndarray:
        """Index the masks as an array: an int gives one mask as (H, W) bool, anything else the chosen masks as
        `PredictedMasks`.
        """
        numbers = chosen(index, len(self), "masks")
        if isinstance(index, int | np.integer):
            return self._full(int(numbers))
        index = numbers.to(self.probs.device)
        return PredictedMasks(self.probs[index], self.boxes[index], self.image_size, self.threshold)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Iterate over the masks as (H, W) bool arrays."""
        return (self._full(i) for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("masks are made when asked for: an array of them is always a copy")
        masks = np.zeros(self.shape, bool)
        for i in range(len(self)):
            crop, (x, y) = self.crop(i)
            masks[i, y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return masks if dtype is None else masks.astype(dtype)

    def numpy(self) -> np.ndarray:
        """Rasterise all masks to an array (N, H, W) bool. Mind the memory: N x H x W bytes."""
        return np.asarray(self)

    def to(self, device: torch.device | str) -> PredictedMasks:
        """Copy of these masks with their tensors on `device`."""
        return PredictedMasks(self.probs.to(device), self.boxes.to(device), self.image_size, self.threshold)

    def crop(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Rasterise mask `i` within its window only: a bool bitmap and the (x, y) of its first pixel in the picture."""
        x0, y0, x1, y1 = self._window(i)
        crop = np.zeros((y1 - y0, x1 - x0), bool)
        for left, strip in self._strips(i):
            crop[:, left - x0 : left - x0 + len(strip)] = strip.T
        return crop, (x0, y0)

    def areas(self) -> np.ndarray:
        """Area of each mask in pixels, (N,) int64."""
        return np.array([sum(int(s.sum()) for _, s in self._strips(i)) for i in range(len(self))], np.int64)

    def to_rle(self) -> list[dict[str, Any]]:
        """Encode each mask as COCO's compressed RLE at the picture's size: {"size": [H, W], "counts": str}."""
        height, width = self.image_size
        starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for i in range(len(self)):
            y0 = self._window(i)[1]
            pieces = [bitmap_runs(strip.T, (left, y0), height) for left, strip in self._strips(i)]
            pieces.append((np.zeros(0, np.int64), np.zeros(0, np.int64)))
            runs = merge_touching(*(np.concatenate(p) for p in zip(*pieces, strict=True)))
            starts.append(runs[0])
            ends.append(runs[1])
        owner = np.repeat(np.arange(len(self)), [len(s) for s in starts[1:]])
        runs = Runs(np.concatenate(starts), np.concatenate(ends), owner, len(self))
        return [{"size": [height, width], "counts": c} for c in write_counts(runs, height * width)]

    def _full(self, i: int) -> np.ndarray:
        return np.asarray(self[[i]])[0]

    def _window(self, i: int) -> tuple[int, int, int, int]:
        """Window of the pixels that mask `i` can touch: x0, y0, x1, y1, end excluded."""
        height, width = self.image_size
        x0, y0, x1, y1 = self.boxes[i].float().tolist()
        if not (x1 > x0 and y1 > y0):  # also when not a number
            return 0, 0, 0, 0
        left, top = (min(max(int(np.floor(v)) - 1, 0), m) for v, m in ((x0, width), (y0, height)))
        right, bottom = (min(int(np.ceil(v)) + 1, m) for v, m in ((x1, width), (y1, height)))
        return left, top, max(right, left), max(bottom, top)

    def _strips(self, i: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the crop of mask `i` in strips from left to right: (first column, (w, h) bool), columns in memory
        order.
        """
        x0, y0, x1, y1 = self._window(i)
        if x1 <= x0 or y1 <= y0:
            return
        probs, box = self.probs[i].float().cpu(), self.boxes[i].float().cpu()
        centres_y = torch.arange(y0, y1, dtype=torch.float32) + 0.5
        gy = (centres_y - box[1]) / (box[3] - box[1]) * 2 - 1
        step = max(1, STRIP_PIXELS // (y1 - y0))
        for left in range(x0, x1, step):
            centres_x = torch.arange(left, min(left + step, x1), dtype=torch.float32) + 0.5
            gx = (centres_x - box[0]) / (box[2] - box[0]) * 2 - 1
            yield left, _paste(probs, gx, gy, self.threshold)


def whole_pixel_boxes(boxes: Tensor, size: int) -> Tensor:
    """Boxes (N, 4) that torchvision pastes maps of `size` cells a side to, in place of the predicted boxes (N, 4).

    It adds a cell of zeros around a map and enlarges the result to whole pixels, from the cut-off corners of the
    box grown likewise, both included. The map itself is what is left of that, less the added cells.
    """
    middle, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * ((size + 2) / size)
    first, last = (middle - half).trunc(), (middle + half).trunc()
    extent = (last - first + 1).clamp(min=1)
    cell = extent / (size + 2)
    return torch.cat([first + cell, first + extent - cell], dim=1)


def _paste(probs: Tensor, gx: Tensor, gy: Tensor, threshold: float) -> np.ndarray:
    """Sample `probs` (M, M) at the places gx (w,) by gy (h,), where -1..1 is the box: (w, h) bool, True at
    `threshold` or above.

    Pixels between four probabilities that are all on one side of the threshold are on that side too. In a
    large crop only the others are sampled, a tenth or so.
    """
    w, h = len(gx), len(gy)
    if w * h < SAMPLE_ALL_PIXELS:
        grid = torch.stack([gx[None].expand(h, w), gy[:, None].expand(h, w)], dim=2)
        return (_sample(probs, grid) >= threshold).numpy().T
    cells = _cells(probs.numpy(), threshold).T
    size = len(probs)
    at_x, at_y = (
        (((g + 1) * size - 1) / 2).floor().clamp(-2, size).long().numpy() + 2 for g in (gx, gy)
    )  # the cell left of sample 0 is number 1
    pixels = np.take(np.take(cells, at_y, axis=1), at_x, axis=0)
    flat = np.flatnonzero(pixels == UNSURE)
    x = flat // h
    places = np.empty((1, len(flat), 2), np.float32)
    places[0, :, 0] = gx.numpy()[x]
    places[0, :, 1] = gy.numpy()[flat - x * h]
    pixels.ravel()[flat] = (_sample(probs, torch.from_numpy(places))[0] >= threshold).numpy()
    return pixels.view(bool)


def _cells(probs: np.ndarray, threshold: float) -> np.ndarray:
    """Classify the cells between neighbouring samples, (M + 3, M + 3) uint8: 0 background, 1 foreground, or UNSURE."""
    padded = np.pad(probs, 2)
    corners = np.stack([padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]])
    cells = np.full(corners.shape[1:], UNSURE, np.uint8)
    cells[corners.min(0) >= threshold + MARGIN] = 1
    cells[corners.max(0) < threshold - MARGIN] = 0
    return cells


def _sample(probs: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(probs[None, None], grid[None], align_corners=False)[0, 0]
