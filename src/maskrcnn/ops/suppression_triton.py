"""Greedy suppression on a GPU with a fixed number of results: nothing of it asks the host for a size.

Two kernels over boxes in the order of their scores. The first writes, for each box, which later ones of its group it
overlaps, 32 of them a word. The second goes through the words of an image, one program each: what is left of 32
neighbours is settled among themselves, and the rows of those that stay are taken off the words after them, as
torchvision's own kernels for GPUs do it in one thread.

With TRITON_INTERPRET=1 set before this module is imported the kernels run on the CPU, for tests.
"""

# Triton's annotations know no numbers among its values.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # boxes a program of the first kernel; also the bits of a word
WARPS = 8  # of the second, whose tile of a word's rows is large


@triton.jit
def _overlaps_kernel(
    boxes,  # (B, N, 4) by score
    groups,  # (B, N) int32, negative for no box
    words,  # (B, N, W) int32
    N, W, threshold,
    BITS: tl.constexpr,
):  # fmt: skip
    image, row_block, w = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i = row_block * BITS + tl.arange(0, BITS)
    j = w * BITS + tl.arange(0, BITS)
    here, there = i < N, j < N
    a = boxes + (image * N + i) * 4
    b = boxes + (image * N + j) * 4
    ax0, ay0 = tl.load(a, mask=here, other=0.0), tl.load(a + 1, mask=here, other=0.0)
    ax1, ay1 = tl.load(a + 2, mask=here, other=0.0), tl.load(a + 3, mask=here, other=0.0)
    bx0, by0 = tl.load(b, mask=there, other=0.0), tl.load(b + 1, mask=there, other=0.0)
    bx1, by1 = tl.load(b + 2, mask=there, other=0.0), tl.load(b + 3, mask=there, other=0.0)
    group_i = tl.load(groups + image * N + i, mask=here, other=-1)
    group_j = tl.load(groups + image * N + j, mask=there, other=-2)
    width = tl.minimum(ax1[:, None], bx1[None, :]) - tl.maximum(ax0[:, None], bx0[None, :])
    height = tl.minimum(ay1[:, None], by1[None, :]) - tl.maximum(ay0[:, None], by0[None, :])
    shared = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    area_i, area_j = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
    union = area_i[:, None] + area_j[None, :] - shared
    over = shared > threshold * union
    over = over & (group_i[:, None] == group_j[None, :]) & (j[None, :] > i[:, None])
    bits = tl.sum(over.to(tl.int32) << tl.arange(0, BITS)[None, :], axis=1)
    tl.store(words + (image * N + i) * W + w, bits, mask=here)


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def _keep_kernel(
    words,  # (B, N, W) int32
    groups,  # (B, N) int32, negative for no box
    kept,  # (B, W) int32
    N, W, limit,
    BITS: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BITS)
    column = tl.arange(0, BLOCK_W)
    gone = tl.zeros([BLOCK_W], dtype=tl.int32)  # suppressed so far, by words
    count = 0
    w = 0
    while (w < W) & (count < limit):
        i = w * BITS + lane
        rows = words + (image * N + i) * W
        there = i < N
        box = there & (tl.load(groups + image * N + i, mask=there, other=-1) >= 0)
        mine = tl.sum(tl.where(column == w, gone, 0))
        alive = box & (((mine >> lane) & 1) == 0)
        among = tl.load(rows + w, mask=there, other=0)  # each one's later neighbours within the word
        for k in tl.static_range(BITS):
            stays = tl.sum(tl.where((lane == k) & alive, 1, 0)) > 0
            off = tl.sum(tl.where(lane == k, among, 0))
            alive = alive & ~(stays & (((off >> lane) & 1) == 1))
        after = tl.load(
            rows[:, None] + column[None, :],
            mask=alive[:, None] & (column[None, :] > w) & (column[None, :] < W),
            other=0,
        )
        gone = gone | tl.reduce(after, 0, _or)
        tl.store(kept + image * W + w, tl.sum(tl.where(alive, 1 << lane, 0)))
        count += tl.sum(alive.to(tl.int32))
        w += 1


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, limit: int) -> Tensor:
    """Choose boxes as `ops.suppression.suppress` does, on the device alone."""
    B, N = scores.shape
    chosen = torch.full(
        (B, limit + 1), -1, dtype=torch.int64, device=boxes.device
    )  # the last place: what is left
    if not B * N * limit:
        return chosen[:, :limit]
    score, order = scores.sort(dim=1, descending=True, stable=True)
    sorted_boxes = boxes.float().gather(1, order[..., None].expand(B, N, 4)).contiguous()
    group = torch.where(torch.isfinite(score), groups.gather(1, order), -1).to(torch.int32).contiguous()
    W = triton.cdiv(N, ROWS)
    words = torch.empty((B, N, W), dtype=torch.int32, device=boxes.device)
    kept = torch.zeros((B, W), dtype=torch.int32, device=boxes.device)
    overlaps: Any = _overlaps_kernel[(B, W, W)]  # Triton's own annotations reject plain constants
    overlaps(sorted_boxes, group, words, N, W, threshold, BITS=ROWS)
    keep: Any = _keep_kernel[(B,)]
    keep(words, group, kept, N, W, limit, BITS=ROWS, BLOCK_W=triton.next_power_of_2(W), num_warps=WARPS)
    bit = torch.arange(ROWS, dtype=torch.int32, device=boxes.device)
    stays = ((kept[..., None] >> bit) & 1).view(B, W * ROWS)[:, :N]
    place = (stays.cumsum(1) - 1).clamp(max=limit)
    place = torch.where(stays.bool(), place, limit)
    return chosen.scatter_(1, place, order)[:, :limit]
