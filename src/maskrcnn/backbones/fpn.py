"""Feature pyramid network: Lin et al. 2016 (arXiv 1612.03144)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv
from maskrcnn.config import FPNConfig


class FPN(nn.Module):
    """Feature pyramid: lateral 1x1 convolutions, a top-down sum and 3x3 output convolutions. P6 is every second place
    of P5.

    forward: the stages' maps, finest first -> [P2, P3, P4, P5, P6], all with `out_channels`.
    """

    def __init__(self, in_channels: list[int], config: FPNConfig) -> None:
        super().__init__()
        out = config.out_channels
        self.lateral = nn.ModuleList(Conv(c, out, 1, norm=config.norm) for c in in_channels)
        self.output = nn.ModuleList(Conv(out, out, 3, norm=config.norm) for _ in in_channels)
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.get_parameter("weight"), a=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        top = self.lateral[-1](features[-1])
        levels = [self.output[-1](top)]
        for feature, lateral, output in zip(
            features[-2::-1], self.lateral[-2::-1], self.output[-2::-1], strict=True
        ):
            finer = lateral(feature)
            top = F.interpolate(top, size=finer.shape[-2:], mode="nearest").add_(finer)
            levels.insert(0, output(top))
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


class FPNBackbone(nn.Module):
    """A backbone body with a pyramid on it. forward: (B, 3, H, W) -> [P2..P6], strides 4..64."""

    def __init__(self, body: nn.Module, pyramid: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = pyramid
        self.out_channels = out_channels
        self.strides = (4, 8, 16, 32, 64)
        self.num_roi_levels = 4  # P6 is the RPN's alone

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.fpn(list(self.body(pixels).values()))


class LastMap(nn.Module):
    """A backbone body without a pyramid. forward: (B, 3, H, W) -> [its last map]."""

    def __init__(self, body: nn.Module, out_channels: dict[str, int], stride: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = list(out_channels.values())[-1]
        self.strides = (stride,)
        self.num_roi_levels = 1

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return list(self.body(pixels).values())[-1:]
