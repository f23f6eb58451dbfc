"""Convolutions on CPUs: Winograd's, the residual sum in the same pass, channel-wise ones in float32."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import processor
from maskrcnn.backbones.fpn import FPN
from maskrcnn.backbones.layers import Conv, FrozenBatchNorm
from maskrcnn.backbones.mobilenet import ConvBlock
from maskrcnn.backbones.resnet import BottleneckBlock
from maskrcnn.engines import winograd


def suits_winograd(conv: Conv) -> bool:
    """Return True for the shapes that `winograd.conv3x3` computes, wide enough to pay."""
    how = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return how == (1, 1, 1, 1) and winograd.wide_enough(conv.weight)


def conv(self: Conv, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """`Conv.forward` of a 3x3 convolution, by Winograd where the map is large enough."""
    if offset is not None or not winograd.applies(x, self.weight):
        return Conv.forward(self, x, offset)
    weight, bias, norm = self.weight, self.bias, self.norm
    if isinstance(norm, FrozenBatchNorm):
        weight, bias = norm.folded(weight, bias)
        norm = None
    if norm is None:
        return winograd.conv3x3(x, weight, bias, self.relu)
    x = norm(winograd.conv3x3(x, weight, bias))
    return F.relu_(x) if self.relu else x


def bottleneck(self: BottleneckBlock, x: Tensor) -> Tensor:
    """`BottleneckBlock.forward` with the residual sum and its ReLU in the last convolution: the sum needs neither a
    map of its own nor two more passes over it.
    """
    shortcut = x if self.shortcut is None else self.shortcut(x)
    y = self.conv1(x)
    offset = None if self.conv2_offset is None else self.conv2_offset(y)
    y, last = self.conv2(y, offset), self.conv3
    if last.norm is not None or not _can_add(y, shortcut):
        return F.relu_(last(y).add_(shortcut))
    return convolve_onto(shortcut, y, last.weight, last.bias)


def _can_add(x: Tensor, other: Tensor) -> bool:
    return (
        x.dtype == other.dtype
        and len(x) > 0
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, other))
        and adds_in_convolution(x.dtype)
    )


def adds_in_convolution(dtype: torch.dtype) -> bool:
    """Return True if oneDNN adds a map to its convolution's output and takes the ReLU in the same pass."""
    return processor.has_onednn() and _adds_in_convolution(dtype)


@cache
def _adds_in_convolution(dtype: torch.dtype) -> bool:
    if dtype not in processor.DTYPES.values():
        return False
    x, weight, bias = (
        processor.maps(16, 16, dtype),
        processor.maps(16, 1, dtype, images=16),
        torch.ones(16, dtype=dtype),
    )
    with torch.inference_mode():
        try:
            out = convolve_onto(x.clone(), x, weight, bias)
            wanted = F.relu(F.conv2d(x, weight, bias) + x)
        except (RuntimeError, AttributeError, NotImplementedError):
            return False
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        return bool(torch.allclose(out.float(), wanted.float(), tolerance, tolerance))


def convolve_onto(other: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Overwrite `other` (N, K, H, W) with the ReLU of itself plus the 1x1 convolution of x (N, C, H, W).

    An operator of PyTorch's own that is not documented: it is what `torch.compile` calls. Ask `adds_in_convolution`.
    """
    geometry = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, weight, bias, *geometry, "add", 1.0, "relu", [], None
    )


def fpn(self: FPN, features: list[Tensor]) -> list[Tensor]:
    """`FPN.forward` whose sums are written over the finer map."""
    top = self.lateral[-1](features[-1])
    levels = [self.output[-1](top)]
    for i in range(len(features) - 2, -1, -1):
        top = _add_upsampled(self.lateral[i](features[i]), top)
        levels.insert(0, self.output[i](top))
    return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


def _add_upsampled(finer: Tensor, coarser: Tensor) -> Tensor:
    height, width = coarser.shape[-2:]
    if finer.shape[-2:] != (2 * height, 2 * width):
        return F.interpolate(coarser, size=finer.shape[-2:], mode="nearest").add_(finer)
    finer.unflatten(2, (height, 2)).unflatten(4, (width, 2)).add_(coarser[:, :, :, None, :, None])
    return finer


def is_strided_depthwise(block: ConvBlock) -> bool:
    conv = block[0]
    return isinstance(conv, nn.Conv2d) and conv.groups > 1 and conv.stride[0] > 1


def depthwise(self: ConvBlock, input: Tensor) -> Tensor:
    """`ConvBlock.forward` in float32: backward, a channel-wise convolution of stride 2 takes 4 to 25 times as long in
    bfloat16.
    """
    if input.dtype != torch.bfloat16:
        return ConvBlock.forward(self, input)
    with torch.autocast("cpu", enabled=False):
        return ConvBlock.forward(self, input.float()).to(input.dtype)
