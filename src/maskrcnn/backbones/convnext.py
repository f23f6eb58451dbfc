"""ConvNeXt: Liu et al. 2022 (arXiv 2201.03545), with the original's parameter names.

A ResNet in the proportions of a transformer: blocks of a depthwise 7x7 convolution and an MLP, with LayerNorms over
channels. Maps are (B, H, W, C) inside, but for the depthwise convolutions.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from maskrcnn.config import ConvNeXtConfig

EPS = 1e-6


class ConvNeXt(nn.Module):
    """ConvNeXt's four stages. forward: (B, 3, H, W) -> {"stage0": (B, C, H/4, W/4), ... "stage3"}, strides 4 to 32.

    What a stage hands to the pyramid is normalised; what it hands to the next stage is not.
    """

    def __init__(self, config: ConvNeXtConfig, in_channels: int = 3) -> None:
        super().__init__()
        channels = [config.channels * 2**i for i in range(4)]
        total = sum(config.depths)
        rates = [config.drop_path * i / max(1, total - 1) for i in range(total)]
        stem = nn.Sequential(nn.Conv2d(in_channels, channels[0], 4, stride=4), LayerNorm2d(channels[0]))
        downs = (nn.Sequential(LayerNorm2d(c), nn.Conv2d(c, 2 * c, 2, stride=2)) for c in channels[:3])
        self.downsample_layers = nn.ModuleList([stem, *downs])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(c, rates.pop(0)) for _ in range(depth)))
            for c, depth in zip(channels, config.depths, strict=True)
        )
        for i, c in enumerate(channels):
            self.add_module(f"norm{i}", LayerNorm2d(c))
        self.out_channels = {f"stage{i}": c for i, c in enumerate(channels)}
        self.strides = {f"stage{i}": 4 * 2**i for i in range(4)}
        self.apply(_initialize)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for i, (down, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(down(x))
            outputs[f"stage{i}"] = getattr(self, f"norm{i}")(x)
        return outputs


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each place: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise convolution and MLP, with a scale per channel and a residual: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + stochastic_depth(y.permute(0, 3, 1, 2), self.drop_path, "row", self.training)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


build = ConvNeXt


def layer_of(name: str, config: ConvNeXtConfig) -> tuple[int | None, int]:
    """Layer of a parameter for layer-wise decay, and their number: 6 of the tiny model, 12 of the others, whose long
    third stage is cut into threes. The norms of the outputs belong to none.
    """
    last = 12 if config.depths[2] > 9 else 6
    found = re.match(r"(downsample_layers|stages)\.(\d)\.(?:(\d+)\.)?", name)
    if found is None:
        return None, last
    stage, block = int(found[2]), int(found[3] or 0)
    if found[1] == "downsample_layers":
        return (0, 2, 3, last)[stage], last
    return (1, 2, 3 + block // 3, last)[stage], last
