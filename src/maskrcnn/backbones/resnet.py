"""ResNet and ResNeXt: He et al. 2015 (arXiv 1512.03385), Xie et al. 2016 (arXiv 1611.05431).

Differs from the papers where detectron2 does: normalisation is frozen by default, and `stride_in_1x1` tells
where a stage's stride is (the first 1x1 convolution in MSRA's and thus detectron2's models, the 3x3 in ResNeXt
and torchvision). Stages are named as there: stem (stride 4), res2 (4), res3 (8), res4 (16), res5 (32).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv, freeze
from maskrcnn.config import Norm, ResNetConfig

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Stem(nn.Module):
    def __init__(self, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = Conv(3, out_channels, 7, stride=2, norm=norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, for depths 18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride, norm=norm, relu=True)
        self.conv2 = Conv(out_channels, out_channels, 3, norm=norm)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv2(self.conv1(x)).add_(shortcut))


class BottleneckBlock(nn.Module):
    """1x1 down, 3x3, 1x1 up, for depths from 50."""

    def __init__(
        self,
        in_channels: int,
        bottleneck_channels: int,
        out_channels: int,
        stride: int,
        norm: Norm,
        groups: int,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv(in_channels, bottleneck_channels, 1, stride=stride1, norm=norm, relu=True)
        self.conv2 = Conv(
            bottleneck_channels, bottleneck_channels, 3, stride=stride3, groups=groups, norm=norm, relu=True
        )
        self.conv3 = Conv(bottleneck_channels, out_channels, 1, norm=norm)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv3(self.conv2(self.conv1(x))).add_(shortcut))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Conv | None:
    if in_channels == out_channels and stride == 1:
        return None
    return Conv(in_channels, out_channels, 1, stride=stride, norm=norm)


class ResNet(nn.Module):
    """The stem and the stages up to res5. forward: (B, 3, H, W) -> {"res2": ..., "res5": (B, C, H/32, W/32)}."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        bottleneck = config.depth >= 50
        expansion = 4 if bottleneck else 1

        def scaled(channels: int) -> int:
            return max(config.groups, int(channels * config.width))

        channels = scaled(64)
        self.stem = Stem(channels, config.norm)
        self.out_channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        for stage, num_blocks in enumerate(NUM_BLOCKS[config.depth]):
            inner = scaled(config.groups * config.width_per_group * 2**stage)
            out_channels = scaled(64 * expansion * 2**stage)
            blocks = []
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                if bottleneck:
                    blocks.append(
                        BottleneckBlock(
                            channels,
                            inner,
                            out_channels,
                            stride,
                            config.norm,
                            config.groups,
                            config.stride_in_1x1,
                        )
                    )
                else:
                    blocks.append(BasicBlock(channels, out_channels, stride, config.norm))
                channels = out_channels
            name = f"res{stage + 2}"
            self.add_module(name, nn.Sequential(*blocks))
            self.out_channels[name] = channels
            self.strides[name] = 4 * 2**stage
        for part in [self.stem, *(self.get_submodule(name) for name in self.out_channels)][
            : config.frozen_stages
        ]:
            freeze(part)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.stem(x)
        for name in self.out_channels:
            x = features[name] = self.get_submodule(name)(x)
        return features
