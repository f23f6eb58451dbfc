"""Polygons filled inside RoIs on a GPU: the mask targets of a training step, without a way back to the CPU.

A cell belongs to a polygon if its centre lies inside by the even-odd rule, and to a mask if it does to one of its
polygons. COCO's way, which the CPU takes, draws the outline on a grid five times as fine first: the two differ in cells
whose centre an outline touches (`tests/masks/test_polygons_triton.py` says in how many).

With TRITON_INTERPRET=1 set before this module is imported the kernel runs on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _polygons_kernel(
    edges,  # (E, 4) from x, y to x, y, in the picture's pixels; those of a polygon, and of a mask, follow each other
    last,  # (E,) 1 at a polygon's last edge
    starts,  # (N + 1,) first edge of each mask
    boxes,  # (R, 4)
    index,  # (R,) mask of each RoI, negative for none
    out,  # (R, SIZE, SIZE)
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    x, y = (cell % SIZE) + 0.5, (cell // SIZE) + 0.5
    mask = tl.load(index + r)
    first, end = tl.load(starts + tl.maximum(mask, 0)), tl.load(starts + tl.maximum(mask, 0) + 1)
    end = tl.where(mask < 0, first, end)
    left, top = tl.load(boxes + 4 * r), tl.load(boxes + 4 * r + 1)
    # As on the CPU: a RoI is at least a tenth of a pixel wide and high.
    scale_x = SIZE / tl.maximum(tl.load(boxes + 4 * r + 2) - left, 0.1)
    scale_y = SIZE / tl.maximum(tl.load(boxes + 4 * r + 3) - top, 0.1)
    parity = tl.zeros([BLOCK], dtype=tl.int32)
    inside = parity
    for e in range(first, end):
        ax, ay = (tl.load(edges + 4 * e) - left) * scale_x, (tl.load(edges + 4 * e + 1) - top) * scale_y
        bx, by = (tl.load(edges + 4 * e + 2) - left) * scale_x, (tl.load(edges + 4 * e + 3) - top) * scale_y
        height = tl.where(ay == by, 1.0, by - ay)  # a level edge crosses no line
        crossed = ((ay > y) != (by > y)) & (ax + (y - ay) * ((bx - ax) / height) > x)
        parity = parity ^ crossed.to(tl.int32)
        ends = tl.load(last + e)
        inside = inside | (parity & ends)
        parity = parity & (1 - ends)
    tl.store(out + r * SIZE * SIZE + cell, inside != 0, mask=cell < SIZE * SIZE)


def fill(edges: Tensor, last: Tensor, starts: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Fill mask `index[r]` within `boxes[r]`: (R, size, size) bool; the tensors are those of the kernel."""
    out = torch.empty(len(boxes), size, size, dtype=torch.bool, device=boxes.device)
    if out.numel():
        kernel: Any = _polygons_kernel[(len(boxes),)]  # Triton's own annotations reject plain constants
        kernel(
            edges.contiguous(), last, starts, boxes.float().contiguous(), index.contiguous(), out,
            SIZE=size, BLOCK=triton.next_power_of_2(size * size),
        )  # fmt: skip
    return out
