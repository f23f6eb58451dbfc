"""Predicted masks that stay small: M x M probabilities with their box, until someone asks for pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.masks import paste
from maskrcnn.ops.indexing import chosen


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

    @classmethod
    def from_bitmaps(cls, bitmaps: np.ndarray, cells: int = 56) -> PredictedMasks:
        """Make masks of bitmaps (N, H, W) bool: the share of each of `cells` squared cells of a mask's own box."""
        height, width = bitmaps.shape[1:]
        probs, boxes = torch.zeros(len(bitmaps), cells, cells), torch.zeros(len(bitmaps), 4)
        for i, bitmap in enumerate(bitmaps):
            rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
            if len(rows):
                x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                crop = torch.from_numpy(bitmap[y0:y1, x0:x1].astype(np.float32))[None, None]
                probs[i] = F.interpolate(crop, (cells, cells), mode="area")[0, 0]
                boxes[i] = torch.tensor([x0, y0, x1, y1], dtype=torch.float32)
        return cls(probs, boxes, (height, width))

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
        return paste.crop(*self._small(i), self.image_size, self.threshold)

    def areas(self) -> np.ndarray:
        """Area of each mask in pixels, (N,) int64."""
        strips = (paste.strips(*self._small(i), self.image_size, self.threshold) for i in range(len(self)))
        return np.array([sum(int(strip.sum()) for _, strip in of_one) for of_one in strips], np.int64)

    def to_rle(self) -> list[dict[str, Any]]:
        """Encode each mask as COCO's compressed RLE at the picture's size: {"size": [H, W], "counts": str}."""
        return paste.encode((self._small(i) for i in range(len(self))), self.image_size, self.threshold)

    def _full(self, i: int) -> np.ndarray:
        return np.asarray(self[[i]])[0]

    def _small(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (M, M) and box (4,) of mask `i`, float32."""
        return self.probs[i].detach().float().cpu().numpy(), self.boxes[i].detach().float().cpu().numpy()
