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

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.sampling import _bag_sum

# Samples in a block: enough work for all threads, little enough to stay in the cache. It does not depend on
# the number of threads, so that sums are made in the same order with any.
SAMPLES_PER_BLOCK = 1 << 17


@dataclass(slots=True)
class Affine:
    """Places in cells from what the network puts out: `offset * scale[k] + point[k] + at[q]`, each (x, y)."""

    scale: Tensor  # (K, 2), or (1, 2) for all points
    point: Tensor  # (K, 2), or (1, 2)
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
    out = rows.new_empty(N, Q, G, D)
    places = Places(offset, weight, scale, point, at, sizes)
    for n in range(N):
        table = rows[n].to(scale.dtype).reshape(S * G, D)
        for q in places.blocks():
            cells = places.cells(n, q)
            total = 0
            for (index, shift), w in zip(cells.rows(), cells.weights(), strict=True):
                total = _bag_sum(table[shift:], index, w).add_(total)
            out[n, q] = total.view(-1, G, D)
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
    (N, S, G, D), K = rows.shape, weight.shape[3]
    rows_grad = torch.empty_like(rows) if for_rows else rows.new_empty(0)
    offset_grad = torch.empty_like(offset) if for_places else rows.new_empty(0)
    weight_grad = torch.empty_like(weight) if for_places else rows.new_empty(0)
    places = Places(offset, weight, scale, point, at, sizes)
    for n in range(N):
        table = rows[n].to(scale.dtype).reshape(S * G, D)
        table_grad = table.new_zeros(table.shape if for_rows else 0)
        for q in places.blocks():
            cells = places.cells(n, q)
            flow = grad[n, q].to(scale.dtype).reshape(-1, D)
            if for_rows:
                cells.scatter(flow, table_grad, places.maps)
            if for_places:
                dots = [_dots(flow, table[shift:], index) for index, shift in cells.rows()]
                for_offset, for_weight = cells.gradients(dots)
                offset_grad[n, q] = for_offset.mul_(scale).view(-1, G, K, 2)
                weight_grad[n, q] = for_weight.view(-1, G, K)
        if for_rows:
            rows_grad[n] = table_grad.view(S, G, D)
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
    """Where all samples are, computed for one block of queries at a time."""

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
        self.num_queries, G, self.K = weight.shape[1:]
        self.step = max(1, SAMPLES_PER_BLOCK // (G * self.K))
        self.num_outputs = min(self.step, self.num_queries) * G
        size = torch.tensor(sizes, dtype=torch.int32, device=offset.device).view(-1, 2)  # H, W of each map
        end = size.prod(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        start = F.pad(end[:-1], (1, 0))
        self.maps = list(
            zip((start * G).tolist(), (end * G).tolist(), (size[:, 1] * G).tolist(), strict=True)
        )
        self.scale, self.point = self._tile(scale), self._tile(point)
        self.last = self._tile(size.flip(1).to(scale.dtype) - 2)
        self.below = self._tile(size[:, 1:] * G)[0]
        group = torch.arange(G, dtype=torch.int32, device=offset.device).repeat_interleave(self.K)
        self.start = group.repeat(self.num_outputs // G).view(-1, self.K)
        self.start += self._tile(start[:, None] * G)[0]

    def _tile(self, of_points: Tensor) -> Tensor:
        """What points or maps have, (.., 2) to (2, outputs, K), so that arithmetic runs without a break."""
        if len(of_points) == 1:
            return of_points.t()[:, :, None]
        points = of_points.t().repeat_interleave(self.K // len(of_points), dim=1)
        return points[:, None].repeat(1, self.num_outputs, 1)

    def blocks(self) -> Iterator[slice]:
        for i in range(0, self.num_queries, self.step):
            yield slice(i, min(i + self.step, self.num_queries))

    def cells(self, n: int, q: slice) -> Cells:
        offset = self.offset[n, q].to(self.scale.dtype)
        num_queries, G, K, _ = offset.shape
        m = num_queries * G
        offset = offset.reshape(m, K, 2).movedim(2, 0)
        place = torch.addcmul(self.point[:, :m], offset, self.scale[:, :m])  # (2, m, K): x, y
        if self.at is not None:
            place.view(2, num_queries, -1).add_(self.at[q].t()[:, :, None])
        place.nan_to_num_(-2.0)  # what is no number is outside
        step = place.floor()
        cell = torch.minimum(step, self.last[:, :m]).clamp_(min=0)
        place.sub_(cell)
        step.sub_(cell)
        x, y = cell.to(torch.int32)
        below = self.below[:m]
        first = y.mul_(below).add_(x, alpha=G).add_(self.start[:m])
        weight = self.weight[n, q].to(place.dtype).reshape(m, K)
        return Cells(place, step, weight, first, below, G)


class Cells:
    """The samples (m, K) of a block of outputs: the four rows that each reads, and their weights.

    A sample reads two neighbouring cells of either axis. `far`: its distance from the lower and from the
    upper cell, at most 1: each has the weight 1 - far. `step`: how many cells the sample lies beyond.
    """

    def __init__(
        self, place: Tensor, step: Tensor, weight: Tensor, first: Tensor, below: Tensor, right: int
    ) -> None:
        self.step, self.weight, self.first, self.below, self.right = step, weight, first, below, right
        self.far_high = (place - 1).clamp_(-1, 1).abs_()
        self.far_low = place.clamp_(-1, 1).abs_()

    def rows(self) -> list[tuple[Tensor, int]]:
        """The four rows, each as indices (m, K) and what to add to them: left, right, the same a line below."""
        under = self.first + self.below
        return [(self.first, 0), (self.first, self.right), (under, 0), (under, self.right)]

    def weights(self) -> list[Tensor]:
        (x_low, y_low), (x_high, y_high) = self.far_low, self.far_high
        low, high = _less(self.weight, y_low), _less(self.weight, y_high)
        return [_less(w, far) for w in (low, high) for far in (x_low, x_high)]

    def gradients(self, dots: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the places in cells, (m, K, 2), and of the weights, (m, K), from the four rows' `dots`."""
        a, b, c, d = dots
        (x_low, y_low), (x_high, y_high) = self.far_low, self.far_high
        upper = _less(a, x_low).add_(_less(b, x_high))
        lower = _less(c, x_low).add_(_less(d, x_high))
        left = _less(a, y_low).add_(_less(c, y_high))
        right = _less(b, y_low).add_(_less(d, y_high))
        for_weight = _less(upper, y_low).add_(_less(lower, y_high))
        (slope_left, slope_upper), (slope_right, slope_lower) = self.slopes()
        places = a.new_empty(*a.shape, 2)
        torch.mul(left.mul_(slope_left).addcmul_(right, slope_right), self.weight, out=places[..., 0])
        torch.mul(upper.mul_(slope_upper).addcmul_(lower, slope_lower), self.weight, out=places[..., 1])
        return places, for_weight

    def slopes(self) -> tuple[Tensor, Tensor]:
        """What the weights of the lower and the upper cell gain as the sample moves on: 0, 1 or -1.

        At a corner: as it moves to the right or down.
        """
        before, here, after = ((self.step + i).clamp_(-1, 1).abs_() for i in (1, 0, -1))
        return here - before, after - here

    def scatter(self, flow: Tensor, out: Tensor, maps: list[tuple[int, int, int]]) -> None:
        """Adds to the rows `out` what the samples pass back of the outputs' gradients `flow` (m, D).

        Samples are sorted by their first row; each row then gathers the outputs that read it.
        maps: the first and the last row of each, and from a row to that one line below.
        """
        begin, end = (int(x) for x in self.first.aminmax())
        end += 1
        key, order = self.first.view(-1).sub(begin).sort(stable=True)
        counts = torch.bincount(key, minlength=end - begin)
        output = order.div(self.first.shape[1], rounding_mode="floor").to(torch.int32)
        for corner, weight in enumerate(self.weights()):
            part = _bag_sum(flow, output, weight.view(-1).index_select(0, order), counts)
            for map_begin, map_end, below in maps:
                i, j = max(begin, map_begin), min(end, map_end)
                if i < j:
                    shift = (corner // 2) * below + (corner % 2) * self.right
                    out[i + shift : j + shift] += part[i - begin : j - begin]


def _less(weight: Tensor, far: Tensor) -> Tensor:
    """weight * (1 - far)"""
    return torch.addcmul(weight, weight, far, value=-1)


def _dots(flow: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """The products of each row of flow (m, D) with the rows of the table at its indices (m, K): (m, K)."""
    m, K = index.shape
    ends = torch.arange(0, m * K + 1, K, dtype=torch.int32, device=index.device)
    at = _csr(ends, index.reshape(-1), flow.new_zeros(m * K), (m, len(table)))
    return torch.sparse.sampled_addmm(at, flow, table.t(), beta=0.0).values().view(m, K)


def _csr(ends: Tensor, index: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # that sparse tensors are in a beta state
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(ends, index, values, shape, check_invariants=False)


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
