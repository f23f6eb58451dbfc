"""InternImage: Wang et al. 2022 (arXiv 2211.05778), with the original's parameter names.

A pyramid of layers that are a transformer's, with DCNv3, a deformable convolution of grouped channels, in
the place of attention. Pre-norm in T, post-norm in S and B. Maps are (B, H, W, C) inside.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from maskrcnn.config import InternImageConfig
from maskrcnn.ops.deformable import dcnv3

EPS = 1e-6
KERNEL_SIZE = 3


class InternImage(nn.Module):
    """InternImage's stem and four levels. forward: (B, 3, H, W) -> {"level0": ..., "level3": (B, 8 C, H/32, W/32)}."""

    def __init__(self, config: InternImageConfig, in_channels: int = 3) -> None:
        super().__init__()
        channels = [config.channels * 2**i for i in range(4)]
        self.patch_embed = Stem(config.channels, in_channels)
        num_layers = sum(config.depths)
        rates = [config.drop_path * i / max(1, num_layers - 1) for i in range(num_layers)]
        self.levels = nn.ModuleList(
            Level(
                channels[i],
                config.groups[i],
                [rates.pop(0) for _ in range(config.depths[i])],
                config,
                downsample=i < 3,
            )
            for i in range(4)
        )
        self.out_channels = {f"level{i}": c for i, c in enumerate(channels)}
        self.strides = {f"level{i}": 4 * 2**i for i in range(4)}
        self.apply(_initialize)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        x = self.patch_embed(x)
        for name, level in zip(self.out_channels, self.levels, strict=True):
            output, x = level(x)
            outputs[name] = output.permute(0, 3, 1, 2)
        return outputs


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with its LayerNorm: (B, 3, H, W) -> (B, H/4, W/4, C)."""

    def __init__(self, channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = _norm(channels // 2, place=1)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = _norm(channels, place=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """3x3 convolution of stride 2 and LayerNorm between two levels: (B, H, W, C) -> (B, H/2, W/2, 2 C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = _norm(2 * channels, place=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Level(nn.Module):
    """Layers of one resolution. forward: (B, H, W, C) -> their output, and the input of the next level."""

    def __init__(
        self,
        channels: int,
        groups: int,
        drop_paths: list[float],
        config: InternImageConfig,
        *,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = config.checkpointing
        self.blocks = nn.ModuleList(Layer(channels, groups, rate, config) for rate in drop_paths)
        self.norm = None if config.post_norm else _norm(channels)
        self.downsample = Downsample(channels) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        recompute = self.checkpointing and self.training
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        if self.norm is not None:
            x = self.norm(x)
        return x, x if self.downsample is None else self.downsample(x)


class Layer(nn.Module):
    """DCNv3, then an MLP, each with a norm, a scale per channel and a residual: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, groups: int, drop_path: float, config: InternImageConfig) -> None:
        super().__init__()
        self.post_norm, self.drop_path = config.post_norm, drop_path
        self.norm1 = _norm(channels)
        self.dcn = DCNv3(channels, groups, config.offset_scale)
        self.norm2 = _norm(channels)
        self.mlp = MLP(channels, int(channels * config.mlp_ratio))
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        for module, norm, gamma in ((self.dcn, self.norm1, self.gamma1), (self.mlp, self.norm2, self.gamma2)):
            y = norm(module(x)) if self.post_norm else module(norm(x))
            x = x.addcmul(gamma, stochastic_depth(y, self.drop_path, "row", self.training))
        return x


class MLP(nn.Module):
    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DCNv3(nn.Module):
    """Deformable convolution v3 with its projections: (B, H, W, C) -> (B, H, W, C).

    A depthwise convolution of the input tells, for each group and place, where the nine samples of the projected
    input are taken, and with what weights, which add up to 1.
    """

    def __init__(self, channels: int, groups: int, offset_scale: float) -> None:
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        points = groups * KERNEL_SIZE**2
        padding = KERNEL_SIZE // 2
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, KERNEL_SIZE, padding=padding, groups=channels),
            _norm(channels, place=1),
        )
        self.offset = nn.Linear(channels, 2 * points)
        self.mask = nn.Linear(channels, points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.modulation(x)
        value = self.input_proj(x)
        value = dcnv3(
            value,
            offset,
            mask.to(value.dtype),
            kernel_size=KERNEL_SIZE,
            stride=1,
            padding=KERNEL_SIZE // 2,
            dilation=1,
            groups=self.groups,
            offset_scale=self.offset_scale,
        )
        return self.output_proj(value)

    def modulation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict offsets (B, H, W, 2 * 9 G) and weights (B, H, W, 9 G) of the samples, of G groups."""
        conv, norm = self.dw_conv
        local = F.gelu(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return self.offset(local), self.mask(local).unflatten(-1, (self.groups, -1)).softmax(-1).flatten(-2)


def _norm(channels: int, *, place: int = 0) -> nn.Sequential:
    """LayerNorm over the last axis, in a `Sequential` at index `place`, as the original names it."""
    return nn.Sequential(*(nn.Identity() for _ in range(place)), nn.LayerNorm(channels, eps=EPS))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, MLP):
        for fc in (module.fc1, module.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)
    if isinstance(module, DCNv3):
        # At first a plain convolution with equal weights, which then learns to move its samples.
        for linear in (module.offset, module.mask):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (module.input_proj, module.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


build = InternImage


def layer_of(name: str, config: InternImageConfig) -> tuple[int | None, int]:
    """Layer of a parameter, 0 for the stem, from 1 the blocks, and the number of blocks. What ends a level counts with
    the next level's first block.
    """
    depths = config.depths
    if name.startswith("patch_embed."):
        return 0, sum(depths)
    found = re.match(r"levels\.(\d+)\.(?:blocks\.(\d+)|norm|downsample)\.", name)
    if found is None:
        return None, sum(depths)
    level, block = int(found[1]), found[2]
    if block is not None:
        return 1 + sum(depths[:level]) + int(block), sum(depths)
    # The last level has no next: its own first block.
    return 1 + sum(depths[: min(level + 1, len(depths) - 1)]), sum(depths)
