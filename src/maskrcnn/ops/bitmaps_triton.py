"""Bitmaps read inside RoIs on a GPU: the mask targets of a training step where masks are bitmaps.

Each cell is the mean of bilinear samples as RoIAlign takes them (aligned, adaptive number, `masks/bitmap_roi.py`), and
foreground at a half or more. What the CPU finds by matrix products of exact halves is summed in float32 here: cells
whose mean is a half to the last bit may differ (`tests/masks/test_bitmaps_triton.py` says in how many).

With TRITON_INTERPRET=1 set before this module is imported the kernel runs on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _place(begin, step, cell, sample, count):
    return (begin - 0.5) + cell * step + (sample + 0.5) * step / count


@triton.jit
def _bit(bits, start, x, y, w, h, use):
    there = use & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return tl.load(bits + start + x * h + y, mask=there, other=0).to(tl.float32)


@triton.jit
def _bitmaps_kernel(
    bits,  # uint8, column-major crops one after another
    starts,  # (N,) int64
    crops,  # (N, 4) int32 x, y, width, height
    boxes,  # (R, 4) in the pixels of the bitmaps' picture
    index,  # (R,) mask of each RoI, negative for none
    out,  # (R, SIZE, SIZE)
    H, W,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, SWAPPED: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, BLOCK)
    column, row = cell % SIZE, cell // SIZE
    mask = tl.load(index + r)
    m = tl.maximum(mask, 0)
    start = tl.load(starts + m)
    x, y = tl.load(crops + 4 * m), tl.load(crops + 4 * m + 1)
    w, h = tl.load(crops + 4 * m + 2), tl.load(crops + 4 * m + 3)
    x0, y0 = tl.load(boxes + 4 * r), tl.load(boxes + 4 * r + 1)
    step_x, step_y = (tl.load(boxes + 4 * r + 2) - x0) / SIZE, (tl.load(boxes + 4 * r + 3) - y0) / SIZE
    nx, ny = tl.ceil(tl.abs(step_x)).to(tl.int32), tl.ceil(tl.abs(step_y)).to(tl.int32)
    drawn = (mask >= 0) & (w > 0)
    nx = tl.where(drawn, nx, 0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for sy in range(ny):
        place_y = _place(y0, step_y, row.to(tl.float32), sy, ny)
        in_y = (place_y >= -1) & (place_y <= H)
        place_y = tl.minimum(tl.maximum(place_y, 0.0), H - 1.0)
        low_y = tl.floor(place_y)
        up_y = place_y - low_y
        at_y = low_y.to(tl.int32) - y
        for sx in range(nx):
            place_x = _place(x0, step_x, column.to(tl.float32), sx, nx)
            use = in_y & (place_x >= -1) & (place_x <= W)
            place_x = tl.minimum(tl.maximum(place_x, 0.0), W - 1.0)
            low_x = tl.floor(place_x)
            up_x = place_x - low_x
            at_x = low_x.to(tl.int32) - x
            near = _bit(bits, start, at_x, at_y, w, h, use) * (1 - up_x)
            near += _bit(bits, start, at_x + 1, at_y, w, h, use) * up_x
            far = _bit(bits, start, at_x, at_y + 1, w, h, use) * (1 - up_x)
            far += _bit(bits, start, at_x + 1, at_y + 1, w, h, use) * up_x
            total += near * (1 - up_y) + far * up_y
    found = drawn & (total >= 0.5 * tl.maximum(nx * ny, 1))
    target = tl.where(SWAPPED, column * SIZE + row, cell)
    tl.store(out + r * SIZE * SIZE + target, found, mask=cell < SIZE * SIZE)


def read(
    bits: Tensor, starts: Tensor, crops: Tensor, picture: tuple[int, int], boxes: Tensor, index: Tensor, size: int,
    swapped: bool,
) -> Tensor:  # fmt: skip
    """Read bitmaps as `ops.bitmaps.crop_bitmaps` does; the tensors are those of the kernel."""
    out = torch.empty(len(boxes), size, size, dtype=torch.bool, device=boxes.device)
    if out.numel():
        kernel: Any = _bitmaps_kernel[(len(boxes),)]  # Triton's own annotations reject plain constants
        kernel(
            bits, starts, crops, boxes.float().contiguous(), index.contiguous(), out, picture[0], picture[1],
            SIZE=size, BLOCK=triton.next_power_of_2(size * size), SWAPPED=swapped,
        )  # fmt: skip
    return out
