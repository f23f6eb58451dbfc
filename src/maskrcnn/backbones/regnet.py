"""RegNetX and RegNetY: Radosavovic et al. 2020 (arXiv 2003.13678), as in detectron2's baselines.

Every stage begins with stride 2, in the grouped 3x3 convolution of its first block, whose bottleneck has the block's
full width. RegNetY's blocks squeeze and excite (Hu et al. 2017, arXiv 1709.01507) through a quarter of the width that
goes INTO the block: the first of a stage through fewer channels than the others. Nothing is frozen: these models are
trained from random weights.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv
from maskrcnn.config import RegNetConfig


class SqueezeExcite(nn.Module):
    """Scale of each channel, 0 to 1, from the means of all of them: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = Conv(channels, squeezed, 1, relu=True)
        self.excite = Conv(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()


class Block(nn.Module):
    """Residual block: 1x1 convolution `a`, grouped 3x3 `b`, squeeze and excitation, 1x1 `c`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, config: RegNetConfig) -> None:
        super().__init__()
        norm = config.norm
        self.proj = None
        if in_channels != out_channels or stride != 1:
            self.proj = Conv(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.a = Conv(in_channels, out_channels, 1, norm=norm, relu=True)
        groups = out_channels // config.group_width
        self.b = Conv(out_channels, out_channels, 3, stride=stride, groups=groups, norm=norm, relu=True)
        self.se = None
        if config.squeeze:
            self.se = SqueezeExcite(out_channels, round(config.squeeze * in_channels))
        self.c = Conv(out_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.proj(x)
        x = self.b(self.a(x))
        if self.se is not None:
            x = self.se(x)
        return F.relu_(self.c(x).add_(shortcut))


class RegNet(nn.Module):
    """RegNet's stem and its four stages. forward: (B, 3, H, W) -> {"s1": (B, C1, H/4, W/4), ..., "s4": (B, C4, H/32,
    W/32)}.
    """

    def __init__(self, config: RegNetConfig, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = Conv(in_channels, config.stem_channels, 3, stride=2, norm=config.norm, relu=True)
        self.out_channels = {f"s{k}": width for k, width in enumerate(config.widths, 1)}
        self.strides = {name: 2 ** (k + 1) for k, name in enumerate(self.out_channels, 1)}
        channels = itertools.pairwise((config.stem_channels, *config.widths))
        for name, (into, out), depth in zip(self.out_channels, channels, config.depths, strict=True):
            blocks = (Block(out if i else into, out, 1 if i else 2, config) for i in range(depth))
            self.add_module(name, nn.Sequential(OrderedDict((f"b{i}", b) for i, b in enumerate(blocks, 1))))
        for module in self.modules():
            if isinstance(module, Conv):  # the paper's: of a grouped convolution all filters count
                fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.stem(x)
        for name in self.out_channels:
            x = features[name] = self.get_submodule(name)(x)
        return features


build = RegNet
