"""3x3 convolutions with fewer multiplications, after Winograd, on CPUs.

Lavin and Gray 2016 (arXiv 1509.09308). A tile of outputs is a product of polynomials: evaluate its inputs and the
weights at some points, multiply value by value (matrix products over the channels), interpolate.

float32: F(4x4, 3x3), a quarter of the multiplications. 4x4 outputs from 6x6 inputs, six points in each direction: 36
matrix products, where a direct convolution has 144. The points are 0, +-3/4, +-3/2 and infinity and not the paper's 0,
+-1, +-2 and infinity: their powers spread less, so that rounding costs a third: 1e-6 of the map's spread, one to two
times what it costs a direct convolution. The entries of both transforms below are exact in float32.

bfloat16: F(2, 3) down the columns, two thirds of the multiplications, with the points 0, +-1 and infinity. Rounding
costs 0.4 % of the map's spread, 0.17 % in a direct convolution; the 4 % that a network has gathered before hide that.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskrcnn import processor


class Least(NamedTuple):
    """Least size from which on Winograd's convolution is faster than a direct one."""

    channels: int
    places: int


LEAST = {torch.float32: Least(128, 2000), torch.bfloat16: Least(256, 5000)}
MAX_WEIGHTS = 1 << 17  # pairs of channels: the weights' values at the points take 144 bytes a pair
# Numbers of a strip that stay in the last cache with what is made of them: 9 MiB of values at the 36 points, or 4 MiB
# of inputs.
STRIP = {torch.float32: 36 << 16, torch.bfloat16: 1 << 21}

Where = tuple[slice, slice]  # images and rows of a map


def _matrices(a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms B^T (6, 6), G (6, 3) and A^T (4, 6) of the paper for the points 0, +-a, +-b and infinity."""
    a2, b2 = a * a, b * b
    inputs = [
        [a2 * b2, 0, -(a2 + b2), 0, 1, 0],
        *([0, -p * q2, -q2, p, 1, 0] for p, q2 in ((a, b2), (-a, b2), (b, a2), (-b, a2))),
        [0, a2 * b2, 0, -(a2 + b2), 0, 1],
    ]
    factors = [1 / (a2 * b2), *[1 / (2 * a2 * (a2 - b2))] * 2, *[1 / (2 * b2 * (b2 - a2))] * 2]
    points = (0, a, -a, b, -b)
    weights = [*([f, f * p, f * p * p] for f, p in zip(factors, points, strict=True)), [0, 0, 1]]
    outputs = [[*(p**i for p in points), float(i == 3)] for i in range(4)]
    return torch.tensor(inputs), torch.tensor(weights, dtype=torch.float64), torch.tensor(outputs)


INPUTS, _WEIGHTS, OUTPUTS = _matrices(0.75, 1.5)
WEIGHTS = torch.kron(_WEIGHTS, _WEIGHTS).float()  # (36, 9): both directions at once


def wide_enough(weight: Tensor) -> bool:
    """Return True for the weights of a 3x3 convolution that `conv3x3` may be the faster way for."""
    K, C, *size = weight.shape
    least = min(needed.channels for needed in LEAST.values())
    return size == [3, 3] and min(C, K) >= least and C * K <= MAX_WEIGHTS and processor.has_mkl()


def applies(x: Tensor, weight: Tensor) -> bool:
    """Return True if `conv3x3` is the faster way for this map, with weights that are `wide_enough`."""
    return (
        x.dtype == weight.dtype
        and x.dtype in LEAST
        and min(weight.shape[:2]) >= LEAST[x.dtype].channels
        and x.shape[0] * x.shape[2] * x.shape[3] >= LEAST[x.dtype].places
        and (x.dtype == torch.float32 or not torch.is_grad_enabled())
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, and ReLU: (N, C, H, W), (K, C, 3, 3), (K,) -> (N, K, H, W), channels
    last. Float32 or bfloat16; differentiable once."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y: Tensor = _Convolution.apply(x, weight, bias)  # pyright: ignore[reportAssignmentType]
        return F.relu_(y) if relu else y
    return _convolve(x, weight, bias, relu)


class _Convolution(torch.autograd.Function):
    """Differentiable Winograd convolution; the gradient of the map is such a convolution again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias, relu=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        x_grad = _convolve(grad, weight.flip(2, 3).transpose(0, 1), None, relu=False) if for_x else None
        bias_grad = grad.sum((0, 2, 3)) if for_bias else None
        return x_grad, _weight_gradient(x, grad) if for_weight else None, bias_grad


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the weights (K, C, 3, 3) from the maps (N, C, H, W) and (N, K, H, W)."""
    shape = (grad.shape[1], x.shape[1], 3, 3)
    if not gradients_are_products():
        empty, ones = x.new_empty(1).expand(shape), [1, 1]
        how = (None, ones, ones, ones, False, [0, 0], 1, [False, True, False])
        return torch.ops.aten.convolution_backward(grad, x, empty, *how)[1]
    # Nine products over all places: between zeros, a step to a neighbour is the same everywhere in a flat map.
    width = x.shape[3] + 2
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)
    flow = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).flatten(0, 2)
    out = x.new_empty(3, 3, *shape[:2])
    for i, j in itertools.product(range(3), range(3)):
        step = i * width + j
        torch.mm(flow[: len(flow) - step].t(), rows[step:], out=out[i, j])
    return out.permute(2, 3, 0, 1)


def gradients_are_products() -> bool:
    """Return True if a 3x3 convolution's weights get their gradient faster from matrix products than from oneDNN.

    Without AVX-512 oneDNN takes 1.7 to 2.7 times as long as the products, with it four fifths to nine tenths.
    """
    return processor.kind() in ("avx2", "other")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    shape = (len(x), len(weight), *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = out.permute(0, 2, 3, 1)
    for where, y in strips(x, weight, bias, relu):
        rows[where] = y
    return out


def strips(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False
) -> Iterator[tuple[Where, Tensor]]:
    """Yield the convolution's output strip by strip, without gradient, for a caller that uses each while it is in the
    cache.

    Yields the images and rows of each strip, and (n, h, W, K), whose memory the next strip takes.
    """
    convolve = _strips_float32 if x.dtype == torch.float32 else _strips_bfloat16
    for where, y in convolve(x.permute(0, 2, 3, 1), weight, bias):
        yield where, y.relu_() if relu else y


# Maps below have their channels last: (N, H, W, C).


def _cut(x: Tensor, tile: int, tiles: int) -> tuple[int, int, list[Where]]:
    """Cut a map into strips of about so many tiles: several whole images or some rows of one. At most so many images
    and rows of tiles, and where.
    """
    N, H, W, _ = x.shape
    down, across = -(-H // tile), -(-W // tile)
    rows = min(max(1, tiles // across), down)
    images = min(max(1, tiles // (across * down)), N)
    where = [
        (slice(i, i + images), slice(j, min(j + tile * rows, H)))
        for i in range(0, N, images)
        for j in range(0, H, tile * rows)
    ]
    return images, rows, where


def _strips_bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Where, Tensor]]:
    H, W, C = x.shape[1:]
    g0, g1, g2 = weight.float().unbind(2)
    kernels = [
        g.to(weight.dtype)[:, :, None].contiguous(memory_format=torch.channels_last)  # (K, C, 1, 3)
        for g in (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)
    ]
    biases = (None, bias, None, None)  # once in each of the two sums
    for where in _cut(x, 2, STRIP[x.dtype] // (4 * C))[2]:
        height = where[1].stop - where[1].start
        h = -(-height // 2)
        first, last = where[1].start - 1, where[1].start + 2 * h + 1
        strip = x[where[0], max(first, 0) : last]
        strip = F.pad(strip, (0, 0, 0, 0, int(first < 0), max(last - H, 0)))
        d = [strip[:, i : i + 2 * h - 1 : 2] for i in range(4)]
        values = d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]
        y = [
            F.conv2d(v.permute(0, 3, 1, 2), kernel, b, padding=(0, 1)).permute(0, 2, 3, 1)
            for v, kernel, b in zip(values, kernels, biases, strict=True)
        ]
        out = x.new_empty(len(strip), 2 * h, W, len(weight))
        torch.add(y[0].add_(y[1]), y[2], out=out[:, 0::2])
        torch.sub(y[1].sub_(y[2]), y[3], out=out[:, 1::2])
        yield where, out[:, :height]


def _strips_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Where, Tensor]]:
    K, C = weight.shape[:2]
    images, rows, strips = _cut(x, 4, STRIP[x.dtype] // (36 * max(C, K)))
    work = _Strip(images, rows, -(-x.shape[2] // 4), C, K)
    work.evaluate_weights(weight)
    for where in strips:
        y = work.convolve(x[where[0]], where[1])
        yield where, y if bias is None else y.add_(bias)


_kept = threading.local()


class _Strip:
    """Memory for one strip after the other, kept from call to call: fresh pages would cost as much as the transforms.
    Maps have their channels last.
    """

    def __init__(self, n: int, h: int, w: int, C: int, K: int) -> None:
        """Take memory for up to n images, h rows of tiles, w tiles a row."""
        self.w = w
        lines, widest = n * (4 * h + 2), max(C, K)
        sizes = [36 * C * K, lines * 4 * (w + 1) * widest + 2 * C, lines * 6 * (w + 1) * widest]
        sizes += [36 * n * h * w * widest] * 2
        memory: Tensor | None = getattr(_kept, "memory", None)
        if memory is None or len(memory) < sum(sizes):
            # Outside of inference mode, its tensors could not be written to.
            with torch.inference_mode(False):
                memory = _kept.memory = torch.zeros(sum(sizes))
        weights, *self.parts = memory[: sum(sizes)].split(sizes)
        self.weights = weights.view(36, K, C)

    def evaluate_weights(self, weight: Tensor) -> None:
        torch.mm(WEIGHTS, weight.permute(2, 3, 0, 1).reshape(9, -1), out=self.weights.flatten(1))

    def convolve(self, x: Tensor, rows: slice) -> Tensor:
        """Convolve these rows of n images (n, H, W, C): outputs (n, h, W, K).

        Each transform is one product for every tile, read from and written to places that overlap or lie apart: few
        passes, and nothing is moved in between.
        """
        n, w, C, K = len(x), self.w, x.shape[3], self.weights.shape[1]
        height, width = rows.stop - rows.start, x.shape[2]
        h = -(-height // 4)
        a, b, c, d = self.parts
        _pad(x, rows.start - 1, _view(a, n, 4 * h + 2, 4 * (w + 1), C))
        # Along each row of places. Its last tile is not used, but makes all tiles equally far from each other.
        tiles = n * (4 * h + 2) * (w + 1)
        across = _view(b, tiles, 6, C)
        torch.bmm(INPUTS.expand(tiles, 6, 6), a.as_strided((tiles, 6, C), (4 * C, C, 1)), out=across)
        # Down the columns: one product for all tiles along the longest of three axes.
        line = (w + 1) * 6 * C  # from one row of places to the next
        image = (4 * h + 2) * line
        order = sorted(range(3), key=(n, h, w).__getitem__)
        sizes = [(n, h, w)[i] for i in order]
        down = across.as_strided((n, h, w, 6, 6 * C), (image, 4 * line, 6 * C, line, 1)).permute(*order, 3, 4)
        values = _view(c, *sizes, 6, 6 * C)
        for i, j in itertools.product(range(sizes[0]), range(sizes[1])):
            torch.bmm(INPUTS.expand(sizes[2], 6, 6), down[i, j], out=values[i, j])
        # The convolution itself.
        tiles = n * h * w
        product = _view(d, 36, tiles, K)
        torch.bmm(values.view(tiles, 36, C).transpose(0, 1), self.weights.transpose(1, 2), out=product)
        # Down, then across.
        down = _view(c, 6 * tiles, 4, K)
        values = product.as_strided((6 * tiles, 6, K), (K, 6 * tiles * K, 1))
        torch.bmm(OUTPUTS.expand(6 * tiles, 4, 6), values, out=down)
        across = _view(b, tiles, 4, 4 * K)
        values = down.as_strided((tiles, 6, 4 * K), (4 * K, tiles * 4 * K, 1))
        torch.bmm(OUTPUTS.expand(tiles, 4, 6), values, out=across)
        axes = [order.index(i) for i in range(3)]
        across = across.view(*sizes, 4, 4, K).permute(axes[0], axes[1], 4, axes[2], 3, 5)
        out = _view(a, n, 4 * h, 4 * w, K)
        out.view(across.shape).copy_(across)
        return out[:, :height, :width]


def _view(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _pad(x: Tensor, first: int, out: Tensor) -> None:
    """Rows `first`... of (n, H, W, C) with one column of zeros before them, zeros wherever the map ends."""
    H, W = x.shape[1:3]
    last = first + out.shape[1]
    top, bottom = max(-first, 0), max(last - H, 0)
    inside = slice(top, out.shape[1] - bottom)
    out[:, inside, 1 : W + 1] = x[:, first + top : last - bottom]
    for border in (out[:, :top], out[:, inside.stop :], out[:, inside, :1], out[:, inside, W + 1 :]):
        border.zero_()
