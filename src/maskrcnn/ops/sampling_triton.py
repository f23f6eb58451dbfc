"""RoIAlign and bilinear sums at free places on a GPU: Triton kernels over channels-last rows.

A sample reads four rows with neighbouring threads on neighbouring channels: `_read_corners` forward,
`_add_to_corners` backward, under both operators. RoIAlign's programs pool one bin for a block of channels and
compute the places of its samples themselves, so the adaptive number of samples needs no answer from the GPU
before the launch. The programs of the deformable operators take some outputs at a time and read their places.
The backward adds with atomics, in float32 for half precision, hence in any order: `sampling.py` and
`bilinear.py` take their own sorted form where `torch.use_deterministic_algorithms` asks for one.

With TRITON_INTERPRET=1 set before this module is imported the kernels run on the CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskrcnn.ops.transfer import small_table


@triton.jit
def _sample(at, size):
    """Bilinear sample along one axis: the two cells it reads and their weights, both zero more than a cell outside."""
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
def _read_corners(a, b, c, d, y_low, y_high, x_low, x_high, mask, ACC: tl.constexpr):
    """Interpolate between the rows at pointers a, b above and c, d below, with the weights of both axes."""
    upper = (
        tl.load(a, mask=mask, other=0.0).to(ACC) * x_low + tl.load(b, mask=mask, other=0.0).to(ACC) * x_high
    )
    lower = (
        tl.load(c, mask=mask, other=0.0).to(ACC) * x_low + tl.load(d, mask=mask, other=0.0).to(ACC) * x_high
    )
    return upper * y_low + lower * y_high


@triton.jit
def _add_to_corners(a, b, c, d, y_low, y_high, x_low, x_high, mask, value):
    tl.atomic_add(a, value * (y_low * x_low), mask=mask, sem="relaxed")
    tl.atomic_add(b, value * (y_low * x_high), mask=mask, sem="relaxed")
    tl.atomic_add(c, value * (y_high * x_low), mask=mask, sem="relaxed")
    tl.atomic_add(d, value * (y_high * x_high), mask=mask, sem="relaxed")


# ---------------------------------------------------------------------------------------------------
# RoIAlign


@triton.jit
def _axis(start, end, bins, ratio, ALIGNED: tl.constexpr):
    """Bins of one RoI along one axis, in cells: the length of a bin, the samples in a bin."""
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
                _add_to_corners(
                    low_low, low_high, high_low, high_high, wy_low, wy_high, wx_low, wx_high, mask, acc
                )
            else:
                acc += _read_corners(
                    low_low, low_high, high_low, high_high, wy_low, wy_high, wx_low, wx_high, mask, ACC
                )
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
    """Pool the bins (R, P, Q, C) of a contiguous map (B, H, W, C); boxes (R, 5) with the image index first."""
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
    """Gradient (B, H, W, C) of the map, from that of the bins, (R, P, Q, C) contiguous."""
    dtype = grad.dtype if grad.dtype == torch.float64 else torch.float32
    out = torch.zeros(*map_size, grad.shape[3], dtype=dtype, device=grad.device)
    _launch(out, boxes, grad, spatial_scale, sampling_ratio, aligned, backward=True)
    return out.to(grad.dtype)


# ---------------------------------------------------------------------------------------------------
# Bilinear sums at free places


@triton.jit
def _neighbours(at, size):
    """Neighbours of a sample along one axis: the lower of the two cells that it reads, their weights, and how these
    grow.
    """
    at = tl.where(at == at, at, -2.0)  # what is no number is outside
    step = tl.floor(at)
    cell = tl.maximum(tl.minimum(step, size - 2.0), 0.0)
    low = tl.maximum(1.0 - tl.abs(at - cell), 0.0)
    high = tl.maximum(1.0 - tl.abs(at - cell - 1.0), 0.0)
    beyond = step - cell  # 0 but at borders
    slope_low = tl.where(beyond == -1.0, 1.0, tl.where(beyond == 0.0, -1.0, 0.0))
    slope_high = tl.where(beyond == 0.0, 1.0, tl.where(beyond == 1.0, -1.0, 0.0))
    return cell.to(tl.int64), low, high, slope_low, slope_high


@triton.jit
def _bilinear_kernel(
    rows,  # (N, S, G, D)
    offset, weight,  # (N, Q, G, K, 2), (N, Q, G, K)
    scale, point, at,  # (K, 2), (K, 2), (Q, 2) if HAS_AT
    maps,  # (L, 3) first place, height, width
    out,  # (N, Q, G, D) written forward, its gradient backward
    rows_grad, offset_grad, weight_grad,  # like rows, added to; like offset and weight, written
    M, S, Q, G, D, K, points_of_map,
    HAS_AT: tl.constexpr, BACKWARD: tl.constexpr, FOR_ROWS: tl.constexpr, FOR_PLACES: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = m < M
    g, q, n = m % G, (m // G) % Q, m // (G * Q)
    at_x = tl.zeros([BLOCK_M], dtype=ACC)
    at_y = at_x
    if HAS_AT:
        at_x = tl.load(at + 2 * q, mask=valid, other=0.0)
        at_y = tl.load(at + 2 * q + 1, mask=valid, other=0.0)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # forward; backward goes through all
    total = tl.zeros([BLOCK_M, BLOCK_D], dtype=ACC)
    for k in range(K):
        map_of_k = maps + (k // points_of_map) * 3
        first, height, width = tl.load(map_of_k), tl.load(map_of_k + 1), tl.load(map_of_k + 2)
        mk = m * K + k
        scale_x, scale_y = tl.load(scale + 2 * k), tl.load(scale + 2 * k + 1)
        x = tl.load(offset + 2 * mk, mask=valid, other=0.0).to(ACC) * scale_x + tl.load(point + 2 * k) + at_x
        y = (
            tl.load(offset + 2 * mk + 1, mask=valid, other=0.0).to(ACC) * scale_y
            + tl.load(point + 2 * k + 1)
            + at_y
        )
        w = tl.load(weight + mk, mask=valid, other=0.0).to(ACC)
        cx, x_low, x_high, left_slope, right_slope = _neighbours(x, width)
        cy, y_low, y_high, upper_slope, lower_slope = _neighbours(y, height)
        start = (((n * S + first + cy * width + cx) * G + g) * D)[:, None]
        right, below = G * D, width * G * D
        if BACKWARD:
            a_dot = tl.zeros([BLOCK_M], dtype=ACC)
            b_dot, c_dot, d_dot = a_dot, a_dot, a_dot
            for block in range(0, D, BLOCK_D):
                d = (block + tl.arange(0, BLOCK_D))[None, :]
                mask = valid[:, None] & (d < D)
                flow = tl.load(out + m[:, None] * D + d, mask=mask, other=0.0).to(ACC)
                if FOR_ROWS:
                    to = rows_grad + start + d
                    _add_to_corners(
                        to, to + right, to + below, to + below + right,
                        y_low[:, None], y_high[:, None], x_low[:, None], x_high[:, None], mask, flow * w[:, None],
                    )  # fmt: skip
                if FOR_PLACES:
                    row = rows + start + d
                    a_dot += tl.sum(flow * tl.load(row, mask=mask, other=0.0).to(ACC), 1)
                    b_dot += tl.sum(flow * tl.load(row + right, mask=mask, other=0.0).to(ACC), 1)
                    c_dot += tl.sum(flow * tl.load(row + below, mask=mask, other=0.0).to(ACC), 1)
                    d_dot += tl.sum(flow * tl.load(row + below + right, mask=mask, other=0.0).to(ACC), 1)
            if FOR_PLACES:
                upper, lower = a_dot * x_low + b_dot * x_high, c_dot * x_low + d_dot * x_high
                left, right_ = a_dot * y_low + c_dot * y_high, b_dot * y_low + d_dot * y_high
                for_x = (left * left_slope + right_ * right_slope) * w * scale_x
                for_y = (upper * upper_slope + lower * lower_slope) * w * scale_y
                tl.store(offset_grad + 2 * mk, for_x.to(offset_grad.dtype.element_ty), mask=valid)
                tl.store(offset_grad + 2 * mk + 1, for_y.to(offset_grad.dtype.element_ty), mask=valid)
                for_weight = upper * y_low + lower * y_high
                tl.store(weight_grad + mk, for_weight.to(weight_grad.dtype.element_ty), mask=valid)
        else:
            row = rows + start + channel[None, :]
            mask = valid[:, None] & (channel < D)[None, :]
            total += w[:, None] * _read_corners(
                row, row + right, row + below, row + below + right,
                y_low[:, None], y_high[:, None], x_low[:, None], x_high[:, None], mask, ACC,
            )  # fmt: skip
    if not BACKWARD:
        mask = valid[:, None] & (channel < D)[None, :]
        tl.store(out + m[:, None] * D + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


def _launch_bilinear(
    rows: Tensor, offset: Tensor, weight: Tensor, scale: Tensor, point: Tensor, at: Tensor | None,
    sizes: list[int], out: Tensor, grads: tuple[Tensor, Tensor, Tensor] | None,
) -> None:  # fmt: skip
    (N, S, G, D), (Q, K) = rows.shape, (weight.shape[1], weight.shape[3])
    M = N * Q * G
    if M * K * D == 0:
        return
    table, start = [], 0  # of each map: its first place, H, W
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        table.append((start, height, width))
        start += height * width
    maps = small_table(table, rows.device, torch.int64)
    rows_grad, offset_grad, weight_grad = grads or (rows, rows, rows)
    block_d = min(triton.next_power_of_2(D), 128)
    block_m = max(1, 512 // block_d)
    grid = (triton.cdiv(M, block_m), 1 if grads else triton.cdiv(D, block_d))
    kernel: Any = _bilinear_kernel[grid]  # Triton's own annotations reject plain constants
    kernel(
        rows, offset.contiguous(), weight.contiguous(), scale.expand(K, 2).contiguous(),
        point.expand(K, 2).contiguous(), scale if at is None else at.contiguous(), maps, out,
        rows_grad, offset_grad, weight_grad, M, S, Q, G, D, K, K // len(maps),
        HAS_AT=at is not None, BACKWARD=grads is not None,
        FOR_ROWS=rows_grad.numel() > 0, FOR_PLACES=weight_grad.numel() > 0,
        ACC=tl.float64 if rows.dtype == torch.float64 else tl.float32, BLOCK_M=block_m, BLOCK_D=block_d,
    )  # fmt: skip


def bilinear_sum_rows(
    rows: Tensor,
    offset: Tensor,
    weight: Tensor,
    scale: Tensor,
    point: Tensor,
    at: Tensor | None,
    sizes: list[int],
) -> Tensor:
    """Sum bilinear samples as `bilinear.bilinear_sum`, (N, Q, G, D), of contiguous rows; affine terms in float32, or
    float64 for such rows.
    """
    out = rows.new_empty(rows.shape[0], weight.shape[1], *rows.shape[2:])
    _launch_bilinear(rows, offset, weight, scale, point, at, sizes, out, None)
    return out


def bilinear_sum_rows_backward(
    grad: Tensor, rows: Tensor, offset: Tensor, weight: Tensor, scale: Tensor, point: Tensor, at: Tensor | None,
    sizes: list[int], for_rows: bool, for_places: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of rows, offset and weight from that of the output; empty where not asked for."""
    grads = (
        rows.new_zeros(rows.shape if for_rows else 0, dtype=scale.dtype),
        offset.new_empty(offset.shape if for_places else 0),
        weight.new_empty(weight.shape if for_places else 0),
    )
    _launch_bilinear(rows, offset, weight, scale, point, at, sizes, grad, grads)
    return grads[0].to(rows.dtype), grads[1], grads[2]
