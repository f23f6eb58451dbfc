"""Weighted sums of bilinear samples at free places: what the deformable operators share.

The forward is `embedding_bag` over the map's rows (see `sampling`), with the arithmetic of places and weights in
blocks that stay in the cache. The backward takes a few groups at a time, whose rows are a small table.
The gradients of places and weights come from four dot products a sample, those of the output's gradient with
the sample's four rows. The gradient of the map is the sum transposed: samples are sorted once by their
first row, then each row gathers the gradients of the outputs that read it, as first, second, third and
fourth row. No two threads write one row, so results do not depend on threads or timing.

A sample reads the rows (b, b + 1) x (c, c + 1) nearest to it inside the map, with the weights
max(0, 1 - distance) of either axis: at the border, and beyond, that is the map continued with zeros.

Shape letters: N images, S places of all maps, Q queries, G groups of D channels, K points a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.sampling import _bag_sum

# Torch splits work among threads from this many elements on; blocks give each thread that much.
SAMPLES_PER_THREAD = 1 << 15
SAMPLES_PER_SORT = 1 << 19
BYTES_OF_ROWS = 1 << 20


@dataclass(slots=True)
class Affine:
    """Places in cells from what the network puts out: `offset * scale[k] + point[k] + at[q]`, each (x, y)."""

    scale: Tensor  # (K, 2)
    point: Tensor  # (K, 2)
    at: Tensor | None = None  # (Q, 2)


def bilinear_sum(
    rows: Tensor, offset: Tensor, weight: Tensor, affine: Affine, shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """out[n, q, g] = sum over k of weight[n, q, g, k] * the sample of group g at place (n, q, g, k).

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
    (N, S, G, D), Q = rows.shape, weight.shape[1]
    real = _real(rows)
    out = rows.new_empty(N, Q, G, D)
    places = Places(offset, weight, scale, point, at, sizes)
    for n in range(N):
        table = rows[n].to(real).reshape(S * G, D)
        for q in places.blocks(G):
            cells = places.cells(n, q, slice(0, G))
            out[n, q] = _bag_sum(table, cells.index().flatten(1), cells.weights().flatten(1)).view(-1, G, D)
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
    """The gradients of rows, offset and weight; with for_rows or for_places off, empty in their stead."""
    (N, S, G, D), (Q, K) = rows.shape, (weight.shape[1], weight.shape[3])
    real = _real(rows)
    grad = grad.view(N, Q, G, D)
    rows_grad = torch.empty_like(rows) if for_rows else rows.new_empty(0)
    offset_grad = torch.empty_like(offset) if for_places else rows.new_empty(0)
    weight_grad = torch.empty_like(weight) if for_places else rows.new_empty(0)
    places = Places(offset, weight, scale, point, at, sizes)
    step = min(G, max(1, SAMPLES_PER_SORT // max(1, Q * K)))
    for n in range(N):
        for g in (slice(i, min(i + step, G)) for i in range(0, G, step)):
            num = g.stop - g.start
            table = rows[n, :, g].to(real).reshape(S * num, D)
            flow = grad[n, :, g].to(real).reshape(Q * num, D)
            first = torch.empty(Q * num * K, dtype=torch.int32, device=rows.device)
            shares = flow.new_empty(4, Q * num * K)
            for q in places.blocks(num):
                cells = places.cells(n, q, g)
                if for_rows:
                    here = slice(q.start * num * K, q.stop * num * K)
                    first[here] = cells.first.view(-1)
                    for share, w in zip(shares, cells.weights_of_corners(), strict=True):
                        share[here] = w.view(-1)
                if for_places:
                    dots = _dots(flow[q.start * num : q.stop * num], table, cells.index())
                    dx, dy, for_weight = cells.gradients(dots)
                    weight_grad[n, q, g] = for_weight.view(-1, num, K)
                    offset_grad[n, q, g, ..., 0] = dx.mul_(places.scale_x[: len(dx)]).view(-1, num, K)
                    offset_grad[n, q, g, ..., 1] = dy.mul_(places.scale_y[: len(dy)]).view(-1, num, K)
            if for_rows:
                rows_grad[n, :, g] = _transposed(flow, first, shares, K, S, num, sizes)
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
    """Where all samples are, computed for one block of queries and groups at a time."""

    def __init__(
        self,
        offset: Tensor,
        weight: Tensor,
        scale: Tensor,
        point: Tensor,
        at: Tensor | None,
        sizes: list[int],
    ) -> None:
        self.offset, self.weight, self.scale, self.at = offset, weight, scale, at
        self.real = scale.dtype
        self.num_queries, self.K = weight.shape[1], weight.shape[3]
        height, width = torch.tensor(sizes, dtype=torch.int32, device=offset.device).view(-1, 2).unbind(1)
        start = (height * width).cumsum(0, dtype=torch.int32) - height * width
        self.samples = SAMPLES_PER_THREAD * torch.get_num_threads()
        num = min(max(1, self.samples // self.K), self.num_queries * weight.shape[2]) + weight.shape[2]

        def tile(of_points: Tensor) -> Tensor:
            """What belongs to the points, repeated for all outputs of a block: arithmetic runs without a break."""
            each = self.K // len(of_points)
            return of_points.repeat_interleave(each).repeat(num, 1)

        self.scale_x, self.scale_y = map(tile, scale.unbind(1))
        self.point_x, self.point_y = map(tile, point.unbind(1))
        self.last_x, self.last_y = tile((width - 2).to(self.real)), tile((height - 2).to(self.real))
        self.width, self.start = tile(width), tile(start)

    def blocks(self, num_groups: int) -> Iterator[slice]:
        step = max(1, self.samples // (self.K * num_groups))
        for i in range(0, self.num_queries, step):
            yield slice(i, min(i + step, self.num_queries))

    def cells(self, n: int, q: slice, g: slice) -> Cells:
        offset = self.offset[n, q, g].to(self.real)
        num_queries, num_groups = offset.shape[:2]
        m = num_queries * num_groups
        offset = offset.reshape(m, self.K, 2)
        x = torch.addcmul(self.point_x[:m], offset[..., 0], self.scale_x[:m])
        y = torch.addcmul(self.point_y[:m], offset[..., 1], self.scale_y[:m])
        if self.at is not None:
            x.view(num_queries, -1).add_(self.at[q, 0, None])
            y.view(num_queries, -1).add_(self.at[q, 1, None])
        x, y = Axis.of(x, self.last_x[:m]), Axis.of(y, self.last_y[:m])
        below = self.width[:m]
        first = y.cell.to(torch.int32).mul_(below).add_(x.cell.to(torch.int32)).add_(self.start[:m])
        if num_groups > 1:
            below = below * num_groups
            group = torch.arange(num_groups, dtype=torch.int32, device=first.device)
            first.mul_(num_groups).view(num_queries, num_groups, self.K).add_(group[:, None])
        weight = self.weight[n, q, g].to(self.real).reshape(m, self.K)
        return Cells(x, y, weight, first, below, num_groups)


@dataclass(slots=True)
class Axis:
    """Samples along one axis: the lower of two neighbouring cells, and how much of both is read."""

    step: Tensor  # the sample's own lower cell less `cell`: 0 but at borders
    cell: Tensor  # integers in floating point
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, at: Tensor, last: Tensor) -> Axis:
        at.nan_to_num_(-2.0)  # what is no number is outside
        step = at.floor()
        cell = torch.minimum(step, last).clamp_(min=0)
        at.sub_(cell)
        step.sub_(cell)
        high = torch.sub(at, 1.0).abs_().neg_().add_(1.0).relu_()
        return cls(step, cell, at.abs_().neg_().add_(1.0).relu_(), high)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """What `low` and `high` grow by when the sample moves on: 0, 1 or -1, to the right of a corner."""
        before, here, after = ((self.step + i).abs_().neg_().add_(1.0).relu_() for i in (1, 0, -1))
        return before.sub_(here), here.sub_(after)


@dataclass(slots=True)
class Cells:
    """The samples (m, K) of a block of outputs: the first of the four rows that each reads, and the weights."""

    x: Axis
    y: Axis
    weight: Tensor
    first: Tensor
    below: Tensor  # from a row to that one line below
    right: int  # from a row to that of the next cell

    def index(self) -> Tensor:
        """(m, 4, K) rows: left and right, then the same one line below."""
        under = self.first + self.below
        return torch.stack((self.first, self.first + self.right, under, under + self.right), 1)

    def weights_of_corners(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = self.weight * self.y.low, self.weight * self.y.high
        return low * self.x.low, low * self.x.high, high * self.x.low, high * self.x.high

    def weights(self) -> Tensor:
        return torch.stack(self.weights_of_corners(), 1)

    def gradients(self, dots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, y (in cells) and weight, each (m, K), from the four rows' products with the output's gradient."""
        a, b, c, d = dots.transpose(0, 1).contiguous()
        upper = torch.addcmul(a * self.x.low, b, self.x.high)
        lower = torch.addcmul(c * self.x.low, d, self.x.high)
        for_weight = torch.addcmul(self.y.low * upper, self.y.high, lower)
        slope, slope_high = self.y.slopes()
        for_y = upper.mul_(slope).addcmul_(slope_high, lower).mul_(self.weight)
        slope, slope_high = self.x.slopes()
        left = a.mul_(self.y.low).addcmul_(c, self.y.high)
        right = b.mul_(self.y.low).addcmul_(d, self.y.high)
        return left.mul_(slope).addcmul_(slope_high, right).mul_(self.weight), for_y, for_weight


def _dots(flow: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """The products of flow (m, D) with the rows at index (m, 4, K): (m, 4, K)."""
    (m, D), (_, _, K) = flow.shape, index.shape
    out = flow.new_empty(m, 4 * K, 1)
    step = max(1, BYTES_OF_ROWS // (4 * K * D * flow.element_size()))
    room = flow.new_empty(min(step, m) * 4 * K, D)
    for i in range(0, m, step):
        at = index[i : i + step].view(-1)
        rows = torch.index_select(table, 0, at, out=room[: len(at)])
        torch.bmm(rows.view(-1, 4 * K, D), flow[i : i + step, :, None], out=out[i : i + step])
    return out.view(m, 4, K)


def _transposed(
    flow: Tensor, first: Tensor, shares: Tensor, K: int, S: int, num_groups: int, sizes: list[int]
) -> Tensor:
    """What samples add to the map's rows (S, num_groups, D): each row gathers the outputs that read it."""
    counts = torch.bincount(first, minlength=S * num_groups)
    order = first.sort(stable=True)[1]
    output = order.div(K, rounding_mode="floor").to(torch.int32)
    out = flow.new_zeros(S, num_groups, flow.shape[1])
    for corner, share in enumerate(shares):
        part = _bag_sum(flow, output, share.index_select(0, order), counts).view_as(out)
        end = 0
        for height, width in zip(sizes[::2], sizes[1::2], strict=True):
            begin, end = end, end + height * width
            shift = (corner // 2) * width + corner % 2
            out[begin + shift : end] += part[begin : end - shift]
    return out


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
