"""Weighted sums of bilinear samples at free places, the operator under DCNv3, deformable convolution and deformable
attention.

The forward is four `embedding_bag`s over the map's rows (see `sampling`), one for each of the rows that a sample
lies between; places and weights are computed in blocks that stay in the cache. Backward, the gradients of
places and weights come from the dot products of the output's gradient with those four rows
(`sampled_addmm`, which reads them where they lie). The gradient of the map is the sum transposed: a block's
samples are sorted by their first row, then each row gathers the gradients of the outputs that read it, as
first, second, third and fourth row. No two threads write one row, and results do not depend on threads or
timing. On CUDA devices both ways are the Triton kernel of `sampling_triton`.

A sample reads the rows (b, b + 1) x (c, c + 1) about it, with the weights 1 - distance of either axis. On the CPU the
map is copied into one with zeros around it, and places further out are moved onto these zeros: what they read and
their gradients are zero by themselves.

Shape letters: N images, S places of all maps, Q queries, G groups of D channels, K points a query.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn import processor
from maskrcnn.ops.sampling import _sum_bags, use_triton

# Samples in a block: enough work for all threads, little enough to stay in the cache. It does not depend on
# the number of threads, so that sums are made in the same order with any.
SAMPLES_PER_BLOCK = 1 << 17
# So many numbers of a map's gradient are made at a time.
NUMBERS_PER_PIECE = 1 << 19


@dataclass(slots=True)
class Affine:
    """Affine map from the network's offsets to places in cells: `offset * scale[k] + point[k] + at[q]`, each (x, y)."""

    scale: Tensor  # (K, 2), or (1, 2) for all points
    point: Tensor  # (K, 2), or (1, 2)
    at: Tensor | None = None  # (Q, 2)


def bilinear_sum(
    rows: Tensor, offset: Tensor, weight: Tensor, affine: Affine, shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Sum bilinear samples with weights: out[n, q, g] = sum over k of weight[n, q, g, k] * the sample of group g at
    place (n, q, g, k).

    rows (N, S, G, D): the places of one or several maps of sizes `shapes`, one map after another; offset
    (N, Q, G, K, 2); weight (N, Q, G, K). The K points are those of each map in turn, equally many a map.
    Returns (N, Q, G * D) in the dtype of rows. Differentiable in rows, offset and weight (once).
    """
    if any(h < 2 or w < 2 for h, w in shapes):  # a sample reads two lines and two columns
        maps = rows.split([h * w for h, w in shapes], dim=1)
        pad = [(max(0, 2 - h), max(0, 2 - w)) for h, w in shapes]
        maps = [
            F.pad(m.unflatten(1, (h, w)), (0, 0, 0, 0, 0, right, 0, below)).flatten(1, 2)
            for m, (h, w), (below, right) in zip(maps, shapes, pad, strict=True)
        ]
        rows = torch.cat(maps, dim=1)
        shapes = [(h + below, w + right) for (h, w), (below, right) in zip(shapes, pad, strict=True)]
    sizes = [side for shape in shapes for side in shape]
    return _bilinear_sum(rows, offset, weight, affine.scale, affine.point, affine.at, sizes)


@torch.library.custom_op("maskrcnn::bilinear_sum", mutates_args=())
def _bilinear_sum(
    rows: Tensor,
    offset: Tensor,
    weight: Tensor,
    scale: Tensor,
    point: Tensor,
    at: Tensor | None,
    sizes: list[int],
) -> Tensor:
    (N, _, G, D), Q = rows.shape, weight.shape[1]
    if use_triton(rows):
        from maskrcnn.ops import sampling_triton

        out = sampling_triton.bilinear_sum_rows(rows.contiguous(), offset, weight, scale, point, at, sizes)
        return out.view(N, Q, G * D)
    out = rows.new_empty(N, Q, G, D)
    places = Places(offset, weight, scale, point, at, sizes)
    for n in range(N):
        table = places.padded(rows[n])
        for q in places.blocks():
            cells = places.cells(n, q)
            ends = places.layout.ends[: cells.first.shape[0] + 1]
            parts = (
                _sum_bags(table[shift:], index.view(-1), ends, w.view(-1))
                for (index, shift), w in zip(cells.rows(), cells.weights(), strict=True)
            )
            # One after another: each part is made where the one before was, in the cache.
            total = next(parts)
            total.add_(next(parts))
            total.add_(next(parts))
            torch.add(total, next(parts), out=out[n, q].view(-1, D))
    return out.view(N, Q, G * D)


@_bilinear_sum.register_fake
def _(rows, offset, weight, scale, point, at, sizes):
    return rows.new_empty(rows.shape[0], weight.shape[1], rows.shape[2] * rows.shape[3])


@torch.library.custom_op("maskrcnn::bilinear_sum_backward", mutates_args=())
def _bilinear_sum_backward(
    grad: Tensor,
    rows: Tensor,
    offset: Tensor,
    weight: Tensor,
    scale: Tensor,
    point: Tensor,
    at: Tensor | None,
    sizes: list[int],
    for_rows: bool,
    for_places: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, offset and weight; with for_rows or for_places off, empty in their stead."""
    (N, _, G, D), K = rows.shape, weight.shape[3]
    if use_triton(rows):
        from maskrcnn.ops import sampling_triton

        return sampling_triton.bilinear_sum_rows_backward(
            grad.view(-1, D), rows.contiguous(), offset, weight, scale, point, at, sizes, for_rows, for_places
        )
    grad = grad.view(N, weight.shape[1], G, D)
    rows_grad = rows.new_empty(rows.shape if for_rows and N > 1 else 0)
    offset_grad = offset.new_empty(offset.shape if for_places else 0)
    weight_grad = weight.new_empty(weight.shape if for_places else 0)
    places = Places(offset, weight, scale, point, at, sizes)
    for n in range(N):
        table = places.padded(rows[n])
        table_grad = torch.zeros_like(table) if for_rows else None
        for q in places.blocks():
            cells = places.cells(n, q)
            flow = grad[n, q].to(scale.dtype).reshape(-1, D)
            if table_grad is not None:
                cells.scatter(flow, table_grad, places.layout.maps)
            if for_places:
                for_offset, for_weight = cells.gradients(table, flow)
                offset_grad[n, q] = for_offset.mul_(scale).view(-1, G, K, 2)
                weight_grad[n, q] = for_weight.view(-1, G, K)
        if table_grad is not None:
            del table
            if N == 1:  # not before: the two tables are the most that exists at a time
                rows_grad = rows.new_empty(rows.shape)
            places.inside(table_grad, rows_grad[n])
    return rows_grad, offset_grad, weight_grad


@_bilinear_sum_backward.register_fake
def _(grad, rows, offset, weight, scale, point, at, sizes, for_rows, for_places):
    return (
        rows.new_empty(rows.shape if for_rows else 0),
        offset.new_empty(offset.shape if for_places else 0),
        weight.new_empty(weight.shape if for_places else 0),
    )


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    for_rows, for_offset, for_weight = ctx.needs_input_grad[:3]
    rows, offset, weight = _bilinear_sum_backward(
        grad.contiguous(), *ctx.saved_tensors, ctx.sizes, for_rows, for_offset or for_weight
    )
    return (
        rows if for_rows else None,
        offset if for_offset else None,
        weight if for_weight else None,
        *[None] * 4,
    )


_bilinear_sum.register_autograd(_backward, setup_context=_setup)


class Places:
    """Places of all samples, computed for one block of queries at a time."""

    def __init__(
        self,
        offset: Tensor,
        weight: Tensor,
        scale: Tensor,
        point: Tensor,
        at: Tensor | None,
        sizes: list[int],
    ) -> None:
        self.offset, self.weight, self.at = offset, weight, at
        self.num_queries, G, K = weight.shape[1:]
        num_blocks = max(1, round(self.num_queries * G * K / SAMPLES_PER_BLOCK))
        self.step = max(1, math.ceil(self.num_queries / num_blocks))
        self.layout = Layout.of(scale, point, sizes, min(self.step, self.num_queries), G, K)
        _scratch.next = self.layout.mark

    def padded(self, rows: Tensor) -> Tensor:
        """Pad each map's places (S, G, D) with zeros: (S', G, D), flattened to rows (S' * G, D)."""
        (_, G, D), end = rows.shape, self.layout.maps[-1][1]
        table = rows.new_empty(end + 2 * G, D, dtype=self.layout.scale.dtype)
        table[end:] = 0
        for (h, w), place, to in zip(self.layout.sizes, self._split(rows), self._maps(table), strict=True):
            to[:2] = to[h + 2 :] = 0
            to[2 : h + 2, :2] = 0
            to[2 : h + 2, 2:] = place.reshape(h, w, G * D)
        return table

    def inside(self, table: Tensor, out: Tensor) -> None:
        """Copy the maps' places without their padding of zeros (the inverse of `padded`) to `out` (S, G, D)."""
        for (h, w), to, place in zip(self.layout.sizes, self._split(out), self._maps(table), strict=True):
            to.view(h, w, -1).copy_(place[2 : h + 2, 2:])

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([h * w for h, w in self.layout.sizes])

    def _maps(self, table: Tensor) -> list[Tensor]:
        """Views of the maps with their zeros, (H + 4, W + 2, G * D) each."""
        return [
            table[a:b].view(h + 4, w + 2, -1)
            for (h, w), (a, b, _) in zip(self.layout.sizes, self.layout.maps, strict=True)
        ]

    def blocks(self) -> Iterator[slice]:
        for i in range(0, self.num_queries, self.step):
            yield slice(i, min(i + self.step, self.num_queries))

    def cells(self, n: int, q: slice) -> Cells:
        layout = self.layout
        offset = self.offset[n, q].to(layout.scale.dtype)
        num_queries, G, K, _ = offset.shape
        m = num_queries * G
        _scratch.next = layout.mark
        place, cell = _take(layout.scale, 2, m, K), _take(layout.scale, 2, m, K)  # of x and y
        offset = offset.reshape(m, K, 2).movedim(2, 0)
        torch.addcmul(layout.point[:, :m], offset, layout.scale[:, :m], out=place)
        if self.at is not None:
            place.view(2, num_queries, -1).add_(self.at[q].t()[:, :, None])
        place.nan_to_num_(-2.0)  # what is no number is outside
        torch.minimum(place, layout.outside[:, :m], out=place).clamp_(min=-2)
        torch.floor(place, out=cell)
        far = place.sub_(cell)
        index = torch.addcmul(cell[0], cell[1], layout.width[:m], out=cell[0])
        first = _take(index, dtype=torch.int32).copy_(index)
        torch.add(layout.first[:m], first, alpha=G, out=first)
        under = torch.add(first, layout.below[:m], out=_take(first))
        weight = self.weight[n, q].to(far.dtype).reshape(m, K)
        return Cells(far, weight, first, under, G, spare=cell)


@dataclass(slots=True)
class Layout:
    """Constants that all blocks of a call share: how the maps lie in their table, and the terms that a block adds to
    all its samples.
    """

    key: tuple
    sizes: list[tuple[int, int]]  # of each map: H, W
    maps: list[tuple[int, int, int]]  # of each: first and last row in the table, rows of a line
    scale: Tensor  # these six hold for all outputs of a block, (.., outputs or 1, K or 1)
    point: Tensor
    outside: Tensor
    width: Tensor
    below: Tensor
    first: Tensor  # the row of each map's upper left cell, in each group
    ends: Tensor  # of each output's samples
    mark: int  # where the scratch memory behind all this begins

    @classmethod
    def of(cls, scale: Tensor, point: Tensor, sizes: list[int], queries: int, G: int, K: int) -> Layout:
        """Make a layout, or return that of the thread's last call if nothing has changed: a network's layers repeat."""
        values = (*scale.flatten().tolist(), *point.flatten().tolist())
        key = (values, scale.dtype, scale.device, *sizes, queries, G, K)
        layout = _scratch.layout
        if layout is None or layout.key != key:
            _scratch.layout = None  # its memory is taken, also if what follows is interrupted
            layout = _scratch.layout = cls._new(key, scale, point, sizes, queries * G, G, K)
        return layout

    @classmethod
    def _new(
        cls, key: tuple, scale: Tensor, point: Tensor, sizes: list[int], outputs: int, G: int, K: int
    ) -> Layout:
        _scratch.next = 0

        def tile(of_points: Tensor) -> Tensor:
            """Repeat a value per point or map, (.., 2), for all outputs, (2, outputs, K), so that arithmetic runs
            without a break.
            """
            if len(of_points) == 1:
                return of_points.t()[:, :, None].clone()
            points = of_points.t().repeat_interleave(K // len(of_points), dim=1)[:, None]
            return _take(points, len(points), outputs, K).copy_(points)

        size = torch.tensor(sizes, dtype=torch.int32, device=scale.device).view(-1, 2)  # H, W of each map
        # Two lines of zeros above and below a map, two columns before it: those are also behind the line before.
        width = size[:, 1] + 2
        end = ((size[:, 0] + 4) * width).cumsum(0, dtype=torch.int32)
        start = F.pad(end[:-1], (1, 0))
        group = torch.arange(G, dtype=torch.int32, device=scale.device)
        origin = ((start + 2 * width + 2) * G).repeat_interleave(K // len(start))
        first = group[:, None] + origin  # (G, K)
        return cls(
            key=key,
            sizes=size.tolist(),
            maps=list(zip((start * G).tolist(), (end * G).tolist(), (width * G).tolist(), strict=True)),
            scale=tile(scale),
            point=tile(point),
            outside=tile(size.flip(1).to(scale.dtype)),
            width=tile(width[:, None].to(scale.dtype))[0],
            below=tile(width[:, None] * G)[0],
            first=_take(first, outputs // G, G, K).copy_(first).view(-1, K),
            ends=torch.arange(0, outputs * K + 1, K, dtype=torch.int32, device=scale.device),
            mark=_scratch.next,
        )


class Scratch(threading.local):
    """Memory for a block's arithmetic, taken once in a thread and kept: 10 to 20 MB.

    Fresh pages would cost more than the arithmetic does.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.slots: list[Tensor] = []
        self.next = 0
        self.layout: Layout | None = None  # of the last call, in the first slots

    def take(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised tensor, valid until `next` is set back to where it was before."""
        size = math.prod(shape) * dtype.itemsize
        slot = self.slots[self.next] if self.next < len(self.slots) else None
        if slot is None or len(slot) < size or slot.device != device:
            slot = torch.empty(size, dtype=torch.uint8, device=device)
            self.slots[self.next : self.next + 1] = [slot]
        self.next += 1
        return slot[:size].view(dtype).view(shape)


_scratch = Scratch()


def _take(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return _scratch.take(*(shape or like.shape), dtype=dtype or like.dtype, device=like.device)


@dataclass(slots=True)
class Cells:
    """Cells that the samples (m, K) of a block of outputs read: four rows each, and their weights.

    A sample reads two neighbouring cells of either axis, with the weights 1 - far and far.
    """

    far: Tensor  # (2, m, K) how far, in x and y, the sample lies beyond the first of the two cells
    weight: Tensor
    first: Tensor  # row of the upper left cell
    under: Tensor  # row of the lower left cell
    right: int  # from a row to that of the next cell
    spare: Tensor  # (2, m, K) memory for `weights`

    def rows(self) -> list[tuple[Tensor, int]]:
        """Four rows that each sample reads, each as indices (m, K) and a number to add to them: upper left, upper
        right, lower left, lower right.
        """
        return [(row, shift) for row in (self.first, self.under) for shift in (0, self.right)]

    def weights(self) -> list[Tensor]:
        x, y = self.far
        upper = torch.addcmul(self.weight, self.weight, y, value=-1, out=self.spare[0])
        lower = torch.mul(self.weight, y, out=self.spare[1])
        corners = []
        for line in (upper, lower):
            left = torch.addcmul(line, line, x, value=-1, out=_take(x))
            corners += [left, line.mul_(x)]
        return corners

    def gradients(self, table: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the places in cells, (m, K, 2), and of the weights, (m, K), from the outputs' (m, D).

        The gradient of a place at a cell's corner is that of moving right or down.

        Of a place at a corner: as it moves to the right or down.
        """
        a, b, c, d = (self._dots(flow, table[shift:], row) for row, shift in self.rows())
        x, y = self.far
        for_place = _take(a, *a.shape, 2)
        slope, slope_lower = b.sub_(a), d.sub_(c)  # to the right
        upper, lower = a.addcmul_(x, slope), c.addcmul_(x, slope_lower)
        torch.mul(lower.sub_(upper), self.weight, out=for_place[..., 1])
        for_weight = upper.addcmul_(y, lower)
        slope.addcmul_(y, slope_lower.sub_(slope))
        torch.mul(slope, self.weight, out=for_place[..., 0])
        return for_place, for_weight

    def _dots(self, flow: Tensor, table: Tensor, row: Tensor) -> Tensor:
        """Dot products of each row of flow (m, D) with the K rows of the table that `row` names: (m, K)."""
        m, K = row.shape
        if not (flow.is_cpu and processor.has_sparse_products(flow.dtype)):
            return torch.linalg.vecdot(table[row.long()], flow[:, None])
        out = _take(flow, m, K).zero_()
        ends = torch.arange(0, m * K + 1, K, dtype=torch.int32, device=row.device)
        at = torch.sparse_csr_tensor(
            ends, row.view(-1), out.view(-1), (m, len(table)), check_invariants=False
        )
        torch.sparse.sampled_addmm(at, flow, table.t(), beta=0.0, out=at)  # into the values of `at`: `out`
        return out

    def scatter(self, flow: Tensor, out: Tensor, maps: list[tuple[int, int, int]]) -> None:
        """Add to the rows `out` the gradients that the samples pass back from those of the outputs, `flow` (m, D).

        Samples are sorted by their first row; each row then gathers the outputs that read it.
        maps: the first and the last row of each, and from a row to that one line below.
        """
        mark = _scratch.next
        begin, end = (int(x) for x in self.first.aminmax())
        key = torch.sub(self.first, begin, out=_take(self.first)).view(-1)
        counts = torch.bincount(key, minlength=end + 1 - begin)
        ends = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)  # of the samples of each row, sorted
        order = key.sort(stable=True)[1]
        output = torch.div(
            key.copy_(order), self.first.shape[1], rounding_mode="floor", out=key
        )  # the output of each sample, sorted
        weights = [torch.index_select(w.view(-1), 0, order, out=_take(w.view(-1))) for w in self.weights()]
        for i, j, below in _pieces(maps, begin, end + 1, max(1, NUMBERS_PER_PIECE // max(1, flow.shape[1]))):
            here = ends[i - begin : j + 1 - begin]
            first, last = here[[0, -1]].tolist()
            for corner, weight in enumerate(weights):
                part = _sum_bags(flow, output[first:last], here - first, weight[first:last])
                shift = (corner // 2) * below + (corner % 2) * self.right
                to = out[i + shift : j + shift]  # shorter where a last map is smaller than the shift
                to += part[: len(to)]  # no sample begins in a map's last line: nothing is left out
        _scratch.next = mark


def _pieces(
    maps: list[tuple[int, int, int]], begin: int, end: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """Cut the rows from begin to end at maps' borders and to a length: (from, to, a line's rows)."""
    for first, last, below in maps:
        last = min(last, end)
        for i in range(max(first, begin), last, length):
            yield i, min(i + length, last), below
