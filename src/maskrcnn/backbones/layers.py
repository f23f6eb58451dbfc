"""Convolution with its normalisation and activation, the building block of all convolutional parts."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.config import Norm
from maskrcnn.ops.deformable import deform_conv2d


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

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and bias of a convolution that gives what this norm makes of its output.

        The gradient reaches `weight` through the product, so this holds in training as well and saves the memory
        traffic of a whole pass forward and backward.
        """
        scale, shift = self.scale_shift()
        return weight * scale.view(-1, 1, 1, 1), shift if bias is None else bias * scale + shift

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_shift()
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place of a map. (No `nn.LayerNorm`, whose weights do not decay.)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    if norm == "gn":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    kinds = {
        "frozen_bn": FrozenBatchNorm,
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "ln": ChannelNorm,
    }
    return None if norm == "none" else kinds[norm](channels)


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: nn.Module | None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    *,
    offset: Tensor | None = None,
) -> Tensor:
    """Apply a convolution, then `norm`. A frozen norm is multiplied into the weights instead of running over the map.
    With `offset` the convolution is a deformable one (see `ops.deformable`).
    """
    if isinstance(norm, FrozenBatchNorm):
        weight, bias = norm.folded(weight, bias)
        norm = None
    if offset is not None:
        x = deform_conv2d(x, offset, weight, bias, stride, padding, dilation)
    else:
        x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return x if norm is None else norm(x)


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
        how = (self.stride, self.padding, self.dilation, self.groups)
        x = conv_norm(x, self.weight, self.bias, self.norm, *how, offset=offset)
        return F.relu_(x) if self.relu else x


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
                setattr(parent, name, frozen(child))


def frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm:
    """Copy of a batch normalisation with its statistics and affine fixed."""
    copy = FrozenBatchNorm(norm.num_features, norm.eps)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    copy.load_state_dict(state)
    return copy
