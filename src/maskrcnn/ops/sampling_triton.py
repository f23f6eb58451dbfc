"""RoIAlign on a GPU: one Triton kernel forward, one backward, over channels-last rows.

A program pools one bin for a block of channels: it computes the places of the bin's samples itself, so
the adaptive number of samples needs no answer from the GPU before the launch, and reads each sample's four
rows with neighbouring threads on neighbouring channels. The backward kernel adds with atomics, in float32
for half precision, hence in any order: `sampling.py` takes its own sorted form where
`torch.use_deterministic_algorithms` asks for one.

With TRITON_INTERPRET=1 set before this module is imported the kernels run on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sample(at, size):
    """A place along one axis: the two cells it reads and their weights, both zero more than a cell outside."""
    inside = (at >= -1.0) & (at <= size)
    at = tl.minimum(tl.maximum(at, 0.0), size - 1.0)
    low = tl.floor(at)
    share = at - low
    high = tl.minimum(low + 1.0, size - 1.0)
    zero = share * 0.0
    return (
        low.to(tl.int64),
        high.to(tl.int64),
        tl.where(inside, 1.0 - share, zero),
        tl.where(inside, share, zero),
    )


@triton.jit
def _axis(start, end, bins, ratio, ALIGNED: tl.constexpr):
    """One axis of one RoI in cells: the length of a bin, the samples in a bin."""
    length = end - start
    if not ALIGNED:
        length = tl.maximum(length, 1.0)
    bin_size = length / bins
    # A box at infinity pools nothing instead of keeping the GPU busy for ever.
    samples = tl.where(bin_size < 4096.0, tl.ceil(bin_size), 0.0).to(tl.int32)
    return bin_size, tl.where(ratio > 0, ratio, samples)


@triton.jit
def _roi_align_kernel(
    rows,  # (B, H, W, C) map, read forward, added to backward
    boxes,  # (R, 5) image index and corners in cells
    bins,  # (R, P, Q, C) pooled, written forward, read backward
    C, H, W, P, Q, ratio,
    ALIGNED: tl.constexpr, BACKWARD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    bin = tl.program_id(0).to(tl.int64)
    q, p, r = bin % Q, (bin // Q) % P, bin // (Q * P)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < C
    box = boxes + r * 5
    image = tl.load(box).to(tl.int64)
    x0, y0 = tl.load(box + 1).to(ACC), tl.load(box + 2).to(ACC)
    bin_w, nx = _axis(x0, tl.load(box + 3).to(ACC), Q, ratio, ALIGNED)
    bin_h, ny = _axis(y0, tl.load(box + 4).to(ACC), P, ratio, ALIGNED)
    x0 += q * bin_w
    y0 += p * bin_h
    count = tl.maximum(ny * nx, 1).to(ACC)
    base = rows + image * H * W * C + channel
    acc = tl.zeros([BLOCK], dtype=ACC)
    if BACKWARD:
        acc = tl.load(bins + bin * C + channel, mask=mask, other=0.0).to(ACC) / count
    for i in range(ny):
        y_low, y_high, wy_low, wy_high = _sample(y0 + (i + 0.5) * bin_h / ny, H)
        for j in range(nx):
            x_low, x_high, wx_low, wx_high = _sample(x0 + (j + 0.5) * bin_w / nx, W)
            low_low = base + (y_low * W + x_low) * C
            low_high = base + (y_low * W + x_high) * C
            high_low = base + (y_high * W + x_low) * C
            high_high = base + (y_high * W + x_high) * C
            if BACKWARD:
                tl.atomic_add(low_low, acc * (wy_low * wx_low), mask=mask, sem="relaxed")
                tl.atomic_add(low_high, acc * (wy_low * wx_high), mask=mask, sem="relaxed")
                tl.atomic_add(high_low, acc * (wy_high * wx_low), mask=mask, sem="relaxed")
                tl.atomic_add(high_high, acc * (wy_high * wx_high), mask=mask, sem="relaxed")
            else:
                acc += tl.load(low_low, mask=mask, other=0.0).to(ACC) * (wy_low * wx_low)
                acc += tl.load(low_high, mask=mask, other=0.0).to(ACC) * (wy_low * wx_high)
                acc += tl.load(high_low, mask=mask, other=0.0).to(ACC) * (wy_high * wx_low)
                acc += tl.load(high_high, mask=mask, other=0.0).to(ACC) * (wy_high * wx_high)
    if not BACKWARD:
        tl.store(bins + bin * C + channel, (acc / count).to(bins.dtype.element_ty), mask=mask)


def _launch(
    rows: Tensor, boxes: Tensor, bins: Tensor, scale: float, ratio: int, aligned: bool, backward: bool
) -> None:
    (R, P, Q, C), (_, H, W, _) = bins.shape, rows.shape
    if bins.numel() == 0:
        return
    # Scaled here: a number handed to a kernel is float32, too little for float64 maps.
    cells = torch.cat([boxes[:, :1], boxes[:, 1:] * scale - (0.5 if aligned else 0.0)], dim=1)
    block = min(triton.next_power_of_2(C), 256)
    grid = (R * P * Q, triton.cdiv(C, block))
    kernel: Any = _roi_align_kernel[grid]  # Triton's own annotations reject plain constants
    kernel(
        rows, cells, bins, C, H, W, P, Q, ratio,
        ALIGNED=aligned, BACKWARD=backward, ACC=tl.float64 if rows.dtype == torch.float64 else tl.float32,
        BLOCK=block,
    )  # fmt: skip


def roi_align_rows(
    rows: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The bins (R, P, Q, C) of a contiguous map (B, H, W, C); boxes (R, 5) with the image index first."""
    out = rows.new_empty(len(boxes), *output_size, rows.shape[3])
    _launch(rows, boxes, out, spatial_scale, sampling_ratio, aligned, backward=False)
    return out


def roi_align_rows_backward(
    grad: Tensor,
    boxes: Tensor,
    map_size: tuple[int, int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The gradient (B, H, W, C) of the map, from that of the bins, (R, P, Q, C) contiguous."""
    dtype = grad.dtype if grad.dtype == torch.float64 else torch.float32
    out = torch.zeros(*map_size, grad.shape[3], dtype=dtype, device=grad.device)
    _launch(out, boxes, grad, spatial_scale, sampling_ratio, aligned, backward=True)
    return out.to(grad.dtype)
