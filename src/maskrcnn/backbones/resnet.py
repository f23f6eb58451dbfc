"""ResNet and ResNeXt: He et al. 2015 (arXiv 1512.03385), Xie et al. 2016 (arXiv 1611.05431).

Differs from the papers where detectron2 does: normalisation is frozen by default, and `stride_in_1x1` tells
where a stage's stride is (the first 1x1 convolution in MSRA's and thus detectron2's models, the 3x3 in ResNeXt
and torchvision). Stages are named as there: stem (stride 4), res2 (4), res3 (8), res4 (16), res5 (32).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv, FrozenBatchNorm, freeze
from maskrcnn.config import Norm, ResNetConfig

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Stem(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, 7, stride=2, norm=norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, for depths 18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride, norm=norm, relu=True)
        self.conv2 = Conv(out_channels, out_channels, 3, norm=norm)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv2(self.conv1(x)).add_(shortcut))


class BottleneckBlock(nn.Module):
    """Residual block for depths from 50: 1x1 convolution down, 3x3, 1x1 up. The 3x3 may be deformable, with offsets
    that it predicts itself.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int,
        *,
        norm: Norm,
        groups: int = 1,
        stride_in_1x1: bool = True,
        dilation: int = 1,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv(in_channels, inner_channels, 1, stride=stride1, norm=norm, relu=True)
        self.conv2_offset = None
        if deformable:
            self.conv2_offset = Conv(inner_channels, 2 * 3 * 3, 3, stride=stride3, dilation=dilation)
            nn.init.zeros_(self.conv2_offset.weight)  # begins as the plain convolution
        self.conv2 = Conv(
            inner_channels,
            inner_channels,
            3,
            stride=stride3,
            dilation=dilation,
            groups=groups,
            norm=norm,
            relu=True,
        )
        self.conv3 = Conv(inner_channels, out_channels, 1, norm=norm)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.conv1(x)
        offset = None if self.conv2_offset is None else self.conv2_offset(x)
        return F.relu_(self.conv3(self.conv2(x, offset)).add_(shortcut))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Conv | None:
    if in_channels == out_channels and stride == 1:
        return None
    return Conv(in_channels, out_channels, 1, stride=stride, norm=norm)


def stage_channels(config: ResNetConfig, stage: int) -> int:
    """Number of channels of res{stage}, 2 to 5; of the stem for 1."""
    if stage == 1:
        return _scaled(64, config)
    return _scaled(64 * (4 if config.depth >= 50 else 1) * 2 ** (stage - 2), config)


def make_stage(config: ResNetConfig, stage: int) -> nn.Sequential:
    """Build res{stage}, 2 to 5."""
    inner_channels = _scaled(config.groups * config.width_per_group * 2 ** (stage - 2), config)
    in_channels, out_channels = stage_channels(config, stage - 1), stage_channels(config, stage)
    dilation = config.res5_dilation if stage == 5 else 1
    stride = 2 if stage > 2 and dilation == 1 else 1
    blocks = []
    for _ in range(NUM_BLOCKS[config.depth][stage - 2]):
        if config.depth < 50:
            blocks.append(BasicBlock(in_channels, out_channels, stride, config.norm))
        else:
            blocks.append(
                BottleneckBlock(
                    in_channels,
                    inner_channels,
                    out_channels,
                    stride,
                    norm=config.norm,
                    groups=config.groups,
                    stride_in_1x1=config.stride_in_1x1,
                    dilation=dilation,
                    deformable=stage in config.deformable_stages,
                )
            )
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks)


def _scaled(channels: int, config: ResNetConfig) -> int:
    return max(config.groups, int(channels * config.width))


class ResNet(nn.Module):
    """ResNet's stem and its stages up to the last. forward: (B, 3, H, W) -> {"res2": ..., "res5": (B, C, H/32,
    W/32)}.
    """

    def __init__(self, config: ResNetConfig, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = Stem(in_channels, stage_channels(config, 1), config.norm)
        self.out_channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        for stage in range(2, 5 if config.last_stage == "res4" else 6):
            name = f"res{stage}"
            self.add_module(name, make_stage(config, stage))
            self.out_channels[name] = stage_channels(config, stage)
            self.strides[name] = 2**stage // (config.res5_dilation if stage == 5 else 1)
        for norm in self.modules():
            if isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d | nn.SyncBatchNorm):
                norm.eps = config.norm_epsilon
        stages = [self.get_submodule(name) for name in self.out_channels]
        for part in [self.stem, *stages][: config.frozen_stages]:
            freeze(part)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.stem(x)
        for name in self.out_channels:
            x = features[name] = self.get_submodule(name)(x)
        return features


build = ResNet
