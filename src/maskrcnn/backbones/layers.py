"""Convolution with its normalisation and activation, the building block of all convolutional parts; sums and
activations that overwrite their input in inference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from maskrcnn import processor
from maskrcnn.config import Norm
from maskrcnn.ops import winograd
from maskrcnn.ops.deformable import deform_conv2d

PIECE_BYTES = 1 << 22  # of what is made and used piece by piece in inference


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and fixed affine: y = x * scale + shift, per channel.

    `weight` and `bias` are buffers: never trained, as in the published fine-tuning of pretrained ResNets.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_shift()
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, whose moments are exact in inference on a CPU.

    PyTorch's kernel for channels-last maps on CPUs sums a whole group in one float32 and takes the variance from the
    mean of squares: it is off by up to 2e-4 of a map's spread, its kernel for the other layout by 1e-6.
    """

    def forward(self, input: Tensor) -> Tensor:
        exact = input.dtype in (torch.float32, torch.float64)
        if input.device.type != "cpu" or torch.is_grad_enabled() or not exact:
            return super().forward(input)
        groups = (len(input), self.num_groups, input.shape[1] // self.num_groups)
        mean = input.mean((2, 3), keepdim=True)  # of each channel, then of each group
        variance = (input - mean).square_().mean((2, 3)).view(groups)
        mean = mean.view(groups)
        group_mean = mean.mean(2, keepdim=True)
        variance = (variance + (mean - group_mean).square()).mean(2, keepdim=True)
        scale = (variance + self.eps).rsqrt() * self.weight.view(groups[1:])
        shift = self.bias.view(groups[1:]) - group_mean * scale
        shape = (*input.shape[:2], 1, 1)
        return torch.addcmul(shift.view(shape), input, scale.view(shape))


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    match norm:
        case "none":
            return None
        case "frozen_bn":
            return FrozenBatchNorm(channels)
        case "bn":
            return nn.BatchNorm2d(channels)
        case "sync_bn":
            return nn.SyncBatchNorm(channels)
        case "gn":
            return GroupNorm(math.gcd(32, channels), channels)


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.Module | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    relu: bool = False,
    offset: Tensor | None = None,
) -> Tensor:
    """Apply a convolution, then `norm`, then ReLU. A frozen norm is multiplied into the weights instead of running
    over the map. With `offset` the convolution is a deformable one (see `ops.deformable`).

    The gradient reaches `weight` through the product, so this holds in training as well and saves the memory
    traffic of a whole pass forward and backward.
    """
    if isinstance(norm, FrozenBatchNorm):
        scale, shift = norm.scale_shift()
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = shift if bias is None else bias * scale + shift
        norm = None
    if offset is not None:
        x = deform_conv2d(x, offset, weight, bias, stride, padding, dilation)
    elif stride == padding == dilation == groups == 1 and winograd.applies(x, weight):
        x = winograd.conv3x3(x, weight, bias, relu and norm is None)
        relu = relu and norm is not None
    else:
        x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    x = x if norm is None else norm(x)
    return F.relu_(x) if relu else x


class Conv(nn.Module):
    """Convolution -> normalisation -> ReLU, the last two optional. Padding keeps the size at stride 1.

    Has a bias exactly where there is no normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm = "none",
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.norm = make_norm(norm, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if self.norm is None else None
        self.stride, self.dilation, self.groups, self.relu = stride, dilation, groups, relu
        self.padding = dilation * (kernel_size // 2)
        # He et al. 2015: keeps the variance of the backward pass through ReLUs.
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        return conv_norm(
            x,
            self.weight,
            self.bias,
            self.norm,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            relu=self.relu,
            offset=offset,
        )

    def add_to(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of `other` plus the convolution of `x`. In inference `other` is overwritten with it: on a CPU the sum
        is then part of the convolution, which needs neither a map of its own nor two more passes over it.
        """
        if self.norm is None and _writes_into(x, other):
            return processor.convolve_onto(
                other,
                x,
                self.weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        return F.relu_(self(x).add_(other))


def _writes_into(x: Tensor, other: Tensor) -> bool:
    """Return True if oneDNN can add its convolution of `x` to `other`."""
    return (
        x.device.type == "cpu"
        and x.dtype == other.dtype
        and len(x) > 0
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, other))
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and processor.adds_in_convolution(x.dtype)
    )


# What transformers do between their matrix products. In inference on a CPU results overwrite what nobody else needs, as
# fresh memory costs more than the arithmetic.


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x)`; x may be overwritten."""
    return torch.ops.aten.gelu_(x) if _may_overwrite(x) else F.gelu(x)


def residual(x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
    """Residual sum x + scale * y; y may be overwritten."""
    out = y if _may_overwrite(y) and x.dtype == y.dtype else None
    return torch.add(x, y, out=out) if scale is None else torch.addcmul(x, scale, y, out=out)


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a function that treats each row by itself: (.., C) to (.., C'). In inference on a CPU it gets some rows
    at a time, so that its intermediate results, `width` numbers a row, stay in the cache.
    """
    step = max(1, PIECE_BYTES // (width * x.element_size()))
    rows = x.flatten(0, -2)
    if len(rows) <= step or not _may_overwrite(x):
        return function(x)
    out: Tensor | None = None
    for i in range(0, len(rows), step):
        piece = function(rows[i : i + step])
        out = piece.new_empty(len(rows), piece.shape[-1]) if out is None else out
        out[i : i + step] = piece
    assert out is not None
    return out.view(*x.shape[:-1], -1)


def mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """Two-layer perceptron over the last axis: linear, GELU, linear."""
    return in_pieces(lambda piece: fc2(gelu(fc1(piece))), x, fc1.out_features)


def add_linear(x: Tensor, y: Tensor, linear: nn.Linear, drop_path: float, training: bool) -> Tensor:
    """Residual sum x + linear(y) with stochastic depth: in training the term is left out of an image with the
    probability `drop_path`. x may be overwritten.
    """
    if training or x.dtype != y.dtype or not (_may_overwrite(x) and x.is_contiguous()):
        return x + stochastic_depth(linear(y), drop_path, "row", training)
    rows = x.view(-1, x.shape[-1])
    step = max(1, PIECE_BYTES // (rows.shape[1] * x.element_size()))
    for part, to in zip(y.flatten(0, -2).split(step), rows.split(step), strict=True):
        to += linear(part)
    return x


def add_resized(x: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """Add to x the map `coarse`, enlarged bilinearly by `factor`. x may be overwritten; the sum then goes some lines
    at a time.
    """
    if not _may_overwrite(x):
        return F.interpolate(coarse, scale_factor=factor, mode="bilinear").to(x.dtype).add_(x)
    height = coarse.shape[2]
    step = max(1, PIECE_BYTES * height // (x.numel() * x.element_size()))
    for i in range(0, height, step):
        first, last = max(i - 1, 0), min(i + step + 1, height)  # a line of neighbours on either side
        lines = F.interpolate(coarse[:, :, first:last], scale_factor=factor, mode="bilinear")
        here = slice(factor * i, factor * min(i + step, height))
        x[:, :, here] += lines[:, :, here.start - factor * first : here.stop - factor * first]
    return x


def add_enlarged(x: Tensor, coarse: Tensor, enlarge: nn.ConvTranspose2d) -> Tensor:
    """Add to x the deconvolution `enlarge` of `coarse`, whose stride is its kernel's size. x may be overwritten; the
    sum then goes some lines at a time.
    """
    if not _may_overwrite(x):
        return enlarge(coarse).to(x.dtype).add_(x)
    height, factor = coarse.shape[2], enlarge.stride[0]
    step = max(1, PIECE_BYTES * height // (x.numel() * x.element_size()))
    for i in range(0, height, step):
        x[:, :, factor * i : factor * (i + step)] += enlarge(coarse[:, :, i : i + step])
    return x


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply `norm` to x, which may be overwritten once the norm is frozen (`fold_norms`)."""
    if not (isinstance(norm, FrozenBatchNorm) and _may_overwrite(x) and norm.weight.dtype == x.dtype):
        return norm(x)
    scale, shift = norm.scale_shift()
    return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1), out=x)


def softmax(x: Tensor) -> Tensor:
    """Softmax over a last axis of few numbers. PyTorch's on the CPU takes four times as long for nine of them."""
    if not _may_overwrite(x):
        return x.softmax(-1)
    real = x.to(torch.promote_types(x.dtype, torch.float32))
    real = (real - real.amax(-1, keepdim=True)).exp_()
    return real.div_(real.sum(-1, keepdim=True)).to(x.dtype)


def _may_overwrite(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def conv_tower(in_channels: int, out_channels: int, num_convs: int, norm: Norm = "none") -> nn.Sequential:
    """Sequence of 3x3 convolutions with ReLU, which the heads apply to their pooled RoIs. It may be empty."""
    channels = [in_channels] + [out_channels] * num_convs
    return nn.Sequential(*(Conv(i, o, 3, norm=norm, relu=True) for i, o in itertools.pairwise(channels)))


def freeze(module: nn.Module) -> None:
    """Stop training a module: its parameters, and the statistics and affine of its batch normalisations."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(parent, name, _frozen(child))


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm(norm.num_features, norm.eps)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    frozen.load_state_dict(state)
    return frozen


@torch.no_grad()
def fold_norms(module: nn.Module) -> None:
    """Multiply batch norms into the weights of the convolutions before them, for inference, and make the others a
    scale and a shift. The module can be neither trained nor saved after.
    """
    for child in module.modules():
        if isinstance(child, Conv) and (norm := _fixed(child.norm)) is not None:
            _fold(child, norm)
            child.norm = None
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], _fixed(child[i + 1])
                if isinstance(conv, nn.Conv2d) and norm is not None:
                    _fold(conv, norm)
                    child[i + 1] = nn.Identity()
        for name, other in list(child.named_children()):
            if isinstance(other, nn.BatchNorm2d | nn.SyncBatchNorm):
                norm = _frozen(other)
                norm.weight, norm.bias = norm.scale_shift()
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)
                setattr(child, name, norm)


def _fixed(norm: nn.Module | None) -> FrozenBatchNorm | None:
    """Return the frozen batch norm, or None if `norm` is no batch norm."""
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return _frozen(norm)
    return norm if isinstance(norm, FrozenBatchNorm) else None


def _fold(conv: Conv | nn.Conv2d, norm: FrozenBatchNorm) -> None:
    scale, shift = norm.scale_shift()
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias * scale + shift, requires_grad=False)
