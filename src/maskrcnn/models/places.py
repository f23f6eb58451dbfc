"""Boxes of a batch in tensors of fixed size: every image has as many places, of which `valid` says which are filled.

No shape depends on data, so one form runs step by step, exported, compiled and in CUDA graphs. What is in the other
places is zero and never counts; `RoIs` says which places the heads compute.

Shape letters: B images, N places of an image, R RoIs over the batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

NOTHING = -math.inf  # score of what takes no part
Fields = TypeVar("Fields", bound="tuple[Any, ...]")


class RoIs(NamedTuple):
    """RoIs that a head computes: boxes (B, N, 4) in the network's pixels, and rows (R,), which of the B * N places."""

    boxes: Tensor
    rows: Tensor

    @classmethod
    def of(cls, boxes: list[Tensor]) -> RoIs:
        """Make RoIs of every image's boxes (N_i, 4)."""
        padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
        valid = [torch.arange(padded.shape[1], device=b.device) < len(b) for b in boxes]
        return cls(padded, filled_rows(torch.stack(valid)))

    def with_image_index(self) -> Tensor:
        """Put the image's number in the batch before each box: (R, 5), index, x0, y0, x1, y1."""
        image = torch.arange(self.boxes.shape[0], device=self.boxes.device)[:, None, None]
        image = image.expand(-1, self.boxes.shape[1], 1).to(self.boxes.dtype)
        return self.at(torch.cat([image, self.boxes], dim=2))

    def at(self, values: Tensor) -> Tensor:
        """Take the RoIs' values, of all places' (B, N, ...): (R, ...)."""
        return values.flatten(0, 1)[self.rows]

    def spread(self, values: Tensor) -> Tensor:
        """Put values (R, ...) into their places, zero in the others: (B, N, ...)."""
        shape = self.boxes.shape[:2]
        if self.rows.shape[0] != shape[0] * shape[1]:
            empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
            values = empty.index_copy(0, self.rows, values)
        return values.unflatten(0, shape)


def filled_rows(valid: Tensor) -> Tensor:
    """Numbers of the filled ones of all places, `valid` (B, N): (R,), whose size depends on data."""
    return valid.flatten().nonzero()[:, 0]


def take(values: Tensor, index: Tensor) -> Tensor:
    """Take places `index` (B, M) of each image's values (B, N) or (B, N, C); place 0 for a negative index."""
    index = index.clamp(min=0)
    return values.gather(1, index if values.dim() == 2 else index[..., None].expand(-1, -1, values.shape[2]))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the `count` best of each image's scores (B, N), and their places; NOTHING at place 0 where N is less."""
    score, index = torch.nn.functional.pad(scores, (0, count), value=NOTHING).topk(count, dim=1)
    return score, torch.where(index < scores.shape[1], index, 0)


def of_image(batch: Fields, i: int) -> Fields:
    """Select one image's filled places of a NamedTuple of tensors (B, N, ...) that says by `valid` which are."""
    valid: Tensor = batch.valid[i]  # pyright: ignore[reportAttributeAccessIssue]
    return type(batch)(*(f[i][valid] if isinstance(f, Tensor) and f.dim() > 1 else f for f in batch))
