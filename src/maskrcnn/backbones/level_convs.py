"""Maps of several levels without a pyramid, as ViT-Adapter's `_fpn`-less models have them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv
from maskrcnn.config import FPNConfig


class LevelConvs(nn.Module):
    """A 1x1 convolution and ReLU on each level, instead of a pyramid, for bodies that mix their levels themselves.

    forward: the stages' maps, finest first -> [P2, P3, P4, P5, P6], all with `out_channels`; P6 is P5 max-pooled.
    """

    def __init__(self, in_channels: list[int], config: FPNConfig) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            Conv(c, config.out_channels, 1, norm=config.norm, relu=True) for c in in_channels
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        height, width = levels[-1].shape[-2:]
        kernel = min(2, height), min(2, width)  # a picture of up to 32 pixels a side has a P6 too
        return [*levels, F.max_pool2d(levels[-1], kernel, stride=2)]
