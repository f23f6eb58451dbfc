"""Weighted sums of rows of a feature map, the operation under RoIAlign and the deformable operators.

A bilinear sample of a channels-last map is a weighted sum of four of its rows (a row: the channels of
one place), and pooling or attention over samples only adds rows.

On the CPU the sum is a product with a sparse matrix where these are at hand and `embedding_bag` elsewhere, which
read rows at the speed of memory and need no compiler. Its gradient for the map is the same sum transposed: the
pairs (place, output) are sorted by place, and each place of the map gathers rows of the output's gradient. No two
threads write one place, so results do not depend on the number of threads or on timing.

RoIAlign averages a grid of samples in each bin. The grid is a product of rows and columns, so the samples of one bin
are first merged per axis: a bin then reads (taps of y) x (taps of x) rows, few even for adaptive sampling.

Shape letters: B images, C channels, H x W the map; R RoIs of P x Q bins; T taps of one bin along an axis;
N rows of a table, M outputs of K weighted rows each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn import processor

# Index arithmetic is done in blocks of this many (place, weight) pairs, so that they stay in the cache.
PAIRS_PER_BLOCK = 1 << 15
# Channels that are made channels-last at a time where a map is not.
CHANNELS_PER_COPY = 32

# Sums of rows: which rows, where those of each sum end (the first end is 0), and their weights.
Bags = tuple[Tensor, Tensor, Tensor]


def _sum_bags(table: Tensor, index: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Sum rows of a table (N, C) with weights: output m of (M, C) sums the rows that `index` names from ends[m] to
    ends[m + 1].
    """
    if not table.is_cpu:
        return sum_rows(table, index, ends, weight)
    # Not by F.embedding_bag: in small blocks its checks cost a tenth of the time.
    return torch.embedding_bag(
        table.detach(), index, ends, mode=0, per_sample_weights=weight.detach(), include_last_offset=True
    )[0]


def sum_rows(table: Tensor, index: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Sum table rows with weights as `_sum_bags` does, in plain PyTorch, for devices whose `embedding_bag` may be
    missing or not know this form.
    """
    bag = torch.repeat_interleave(ends.diff().long())
    rows = table.detach().index_select(0, index.long()) * weight.detach()[:, None]
    return table.new_zeros(len(ends) - 1, table.shape[1]).index_add_(0, bag, rows.to(table.dtype))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def use_triton(x: Tensor) -> bool:
    """Return True on CUDA, unless a deterministic answer is asked for: the kernel's backward adds in any order."""
    return x.is_cuda and _has_triton() and not torch.are_deterministic_algorithms_enabled()


@dataclass(slots=True)
class AxisTaps:
    """Taps along one axis: the cells that the bins of the RoIs read, and their weights, all bins one after another.

    cell, weight: (K,); count, first: (R, bins): a bin reads `count` cells from number `first` on.
    """

    cell: Tensor
    weight: Tensor
    count: Tensor
    first: Tensor


@dataclass(slots=True)
class RoITaps:
    """Taps of RoIs in a map: the cells that each bin reads are the product of its taps along y and x.

    Along y a cell is one of the B * H lines of all images. size: (H, W).
    """

    y: AxisTaps
    x: AxisTaps
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        boxes: Tensor,
        output_size: tuple[int, int],
        size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool,
    ) -> RoITaps:
        start = boxes[:, 1:3] * spatial_scale - (0.5 if aligned else 0.0)
        end = boxes[:, 3:5] * spatial_scale - (0.5 if aligned else 0.0)
        length = end - start
        if not aligned:
            length = length.clamp(min=1)
        y = _axis_taps(start[:, 1], length[:, 1], output_size[0], size[0], sampling_ratio)
        x = _axis_taps(start[:, 0], length[:, 0], output_size[1], size[1], sampling_ratio)
        y.cell += (boxes[:, 0].to(torch.int32) * size[0]).repeat_interleave(y.count.sum(1))
        return cls(y, x, size)

    def gather(self, input: Tensor) -> Tensor:
        """Pool the bins (R, C, P, Q) from a map (B, C, H, W)."""
        (R, P), Q, C = self.y.count.shape, self.x.count.shape[1], input.shape[1]
        pairs = self.y.count.sum(1) * self.x.count.sum(1)  # (R,)
        out = input.new_empty(R, P, Q, C)
        out.index_fill_(0, (pairs == 0).nonzero()[:, 0], 0)
        blocks = _blocks(pairs.tolist(), PAIRS_PER_BLOCK)
        _sum_blocks(out.view(R * P * Q, C), input, P * Q, blocks, self._read_by_rois)
        return out.permute(0, 3, 1, 2)

    def scatter(self, grad: Tensor, num_images: int) -> Tensor:
        """Add up the gradient (B, C, H, W) of the map from that of the bins, (R, C, P, Q): the transpose of `gather`.

        Each place gathers the bins that read it. A few lines of the map at a time: a y tap on a line meets
        every x tap of its RoI, and these pairs of place and bin are sorted by place.
        """
        C, (H, W) = grad.shape[1], self.size
        met = torch.repeat_interleave(self.x.count.sum(1), self.y.count.sum(1))  # x taps that a y tap meets
        pairs = met.new_zeros(num_images * H, dtype=torch.int64).index_add_(
            0, self.y.cell, met.long()
        )  # of each line
        out = grad.new_empty(num_images, H, W, C)
        out.view(num_images * H, W, C).index_fill_(0, (pairs == 0).nonzero()[:, 0], 0)
        blocks = _blocks(pairs.tolist(), PAIRS_PER_BLOCK)
        _sum_blocks(out.view(num_images * H * W, C), grad, W, blocks, self._readers_of_lines())
        return out.permute(0, 3, 1, 2)

    def _read_by_rois(self, a: int, b: int) -> Bags:
        """List the places of the map that the bins of the RoIs from a to b read."""
        size = (b - a, self.y.count.shape[1], self.x.count.shape[1])
        lines, first_line = (t[a:b, :, None].expand(size).reshape(-1) for t in (self.y.count, self.y.first))
        columns, first_column = (t[a:b, None].expand(size).reshape(-1) for t in (self.x.count, self.x.first))
        bin, i = _ranges(first_line, lines)
        tap, j = _ranges(first_column.index_select(0, bin), columns.index_select(0, bin))
        place = (self.y.cell.index_select(0, i) * self.size[1]).index_select(0, tap)
        weight = self.y.weight.index_select(0, i).index_select(0, tap)
        del tap  # as much memory as the results
        place += self.x.cell.index_select(0, j)
        weight *= self.x.weight.index_select(0, j)
        return place, _ends(lines * columns), weight

    def _readers_of_lines(self) -> Callable[[int, int], Bags]:
        """Make a function of a and b that lists the bins which read the places of the map's lines from a to b."""
        P, Q, W = self.y.count.shape[1], self.x.count.shape[1], self.size[1]
        line, order = self.y.cell.sort(stable=True)
        bin_row = torch.repeat_interleave(self.y.count.view(-1))[order]
        wy, r = self.y.weight[order], bin_row.div(P, rounding_mode="floor")
        first_x, num_x = self.x.first[:, 0][r], self.x.count.sum(1, dtype=torch.int32)[r]
        q = torch.repeat_interleave(self.x.count.view(-1)).remainder_(Q)

        def readers(a: int, b: int) -> Bags:
            u, v = torch.searchsorted(line, line.new_tensor([a, b])).tolist()
            i, j = _ranges(first_x[u:v], num_x[u:v])
            place = ((line[u:v] - a) * W).index_select(0, i).add_(self.x.cell.index_select(0, j))
            ends = _ends(torch.bincount(place, minlength=(b - a) * W))
            order = place.sort(stable=True)[1]
            del place
            i, j = i.index_select(0, order), j.index_select(0, order)
            del order
            bin = (bin_row[u:v] * Q).index_select(0, i).add_(q.index_select(0, j))
            return bin, ends, wy[u:v].index_select(0, i).mul_(self.x.weight.index_select(0, j))

        return readers


def _sum_blocks(
    out: Tensor, input: Tensor, size: int, blocks: list[tuple[int, int]], read: Callable[[int, int], Bags]
) -> None:
    """Write weighted sums of the rows of `input` (B, C, H, W) to `out` (M, C), block by block.

    A block from a to b fills the rows of `out` from a * size to b * size with the sums that read(a, b) names.
    A channels-last input is read where it lies. Another one is laid out a few channels at a time: that takes less
    memory than all of them, and what is read again and again stays in the cache.
    """
    rows = input.detach().permute(0, 2, 3, 1)
    C = input.shape[1]
    if rows.is_contiguous():
        for a, b in blocks:
            _sum_bags_into(out[a * size : b * size], rows.flatten(0, 2), *read(a, b))
        return
    bags = [read(a, b) for a, b in blocks]
    for c in range(0, C, CHANNELS_PER_COPY):
        some = rows[..., c : c + CHANNELS_PER_COPY].contiguous().flatten(0, 2)
        for (a, b), bag in zip(blocks, bags, strict=True):
            _sum_bags_into(out[a * size : b * size, c : c + CHANNELS_PER_COPY], some, *bag)
        del some  # before the next are laid out


def _sum_bags_into(out: Tensor, table: Tensor, index: Tensor, ends: Tensor, weight: Tensor) -> None:
    """Write the result of `_sum_bags` to `out`."""
    if not (table.is_cpu and processor.has_sparse_products(table.dtype)):
        out.copy_(_sum_bags(table, index, ends, weight.to(table.dtype)))
        return
    size = (len(out), len(table))
    bags = torch.sparse_csr_tensor(ends, index, weight, size, check_invariants=False)
    torch.addmm(out, bags, table, beta=0, out=out)


def _ends(counts: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
    """Prefix sums of `counts`, 0 first: the ends of consecutive groups of that many elements."""
    return F.pad(counts.view(-1).cumsum(0, dtype=dtype), (1, 0))


def _first(counts: Tensor) -> Tensor:
    """Start of each of consecutive groups of `counts` elements, in the shape of `counts`."""
    flat = counts.reshape(-1)
    return (flat.cumsum(0, dtype=counts.dtype) - flat).view_as(counts)


def _ranges(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the ranges first[i], first[i] + 1, ... of counts[i] numbers: i for each number, and the numbers."""
    i = torch.repeat_interleave(counts)
    step = torch.arange(len(i), dtype=first.dtype, device=i.device)
    return i, (first - _first(counts)).index_select(0, i).add_(step)


def _axis_taps(start: Tensor, length: Tensor, bins: int, size: int, ratio: int) -> AxisTaps:
    """Taps along one axis: the cells that each bin of each RoI reads and their weights.

    start, length: (R,) in cells of a map with `size` cells. The samples of a bin are merged: a cell that
    several of them read appears once, with the sum of their weights.
    """
    bin_size = length / bins
    wanted = (
        torch.full_like(length, ratio)
        if ratio > 0
        else bin_size.ceil().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    )
    n = wanted.clamp(min=1)
    S = int(n.max()) if len(n) else 1
    s = torch.arange(S, device=start.device, dtype=start.dtype).expand(len(n), S)
    used = (s < wanted[:, None])[:, None]  # (R, 1, S)
    s = torch.minimum(s, n[:, None] - 1)
    s = torch.where(bin_size[:, None] < 0, n[:, None] - 1 - s, s)  # ascending also when x1 < x0
    p = torch.arange(bins, device=start.device, dtype=start.dtype)
    bin_start = start[:, None] + p * bin_size[:, None]
    at = bin_start[..., None] + ((s + 0.5) * bin_size[:, None] / n[:, None])[:, None]  # (R, bins, S)
    at = at.nan_to_num(nan=-2.0)  # outside

    inside = (at >= -1) & (at <= size) & used
    at = at.clamp(0, size - 1)
    low = at.floor()
    share = inside / n[:, None, None]
    high_share = (at - low) * share
    # Cells ascend with the samples: a step of 0 or 1 shares taps with the sample before, a longer one none.
    slot = F.pad(low.diff(dim=2).clamp(max=2), (1, 0)).cumsum(2).long()
    T = int(slot.max()) + 2 if slot.numel() else 1
    low = low.to(torch.int32)
    cell = low[..., :1].repeat(1, 1, T)
    cell.scatter_(2, slot + 1, (low + 1).clamp(max=size - 1)).scatter_(2, slot, low)
    weight = at.new_zeros(cell.shape)
    weight.scatter_add_(2, slot, share - high_share).scatter_add_(2, slot + 1, high_share)
    used = weight != 0
    count = used.sum(2, dtype=torch.int32)
    return AxisTaps(cell[used], weight[used], count, _first(count))


def _blocks(counts: list[int], limit: int) -> list[tuple[int, int]]:
    """Cut a list of counts into runs [begin, end) of about `limit` in all, leaving out runs of zeros."""
    blocks, begin, total = [], 0, 0
    for i, count in enumerate(counts):
        if total and (total + count > limit or count == 0):
            blocks.append((begin, i))
            total = 0
        if total == 0:
            begin = i
        total += count
    if total:
        blocks.append((begin, len(counts)))
    return blocks
