"""MobileNetV2: Sandler et al. 2018 (arXiv 1801.04381), with torchvision's parameter names.

Only the layers up to the last inverted residual: the 1x1 convolution to 1280 channels belongs to the classifier.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_norm, freeze, make_norm
from maskrcnn.config import MobileNetV2Config, Norm

# The paper's table 2: expansion, channels, repeats, stride.
INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The last block of each stride, from 2 to 32.
STAGE_ENDS = {"stride2": 1, "stride4": 3, "stride8": 6, "stride16": 13, "stride32": 17}


class ConvBlock(nn.Sequential):
    """Convolution ("0"), normalisation ("1") and optionally ReLU6, with torchvision's names."""

    def __init__(self, conv: nn.Conv2d, norm: Norm) -> None:
        modules: list[nn.Module] = [conv]
        if (module := make_norm(norm, conv.out_channels)) is not None:
            modules.append(module)
        super().__init__(*modules)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(_apply(input, self[0], self[1] if len(self) > 1 else None), inplace=True)


def _conv(
    in_channels: int, out_channels: int, kernel: int, norm: Norm, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=norm == "none"
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _apply(x: Tensor, conv: nn.Module, norm: nn.Module | None) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    stride, padding = conv.stride[0], int(conv.padding[0])
    return conv_norm(x, conv.weight, conv.bias, norm, stride=stride, padding=padding, groups=conv.groups)


class InvertedResidual(nn.Module):
    """Inverted residual: 1x1 convolution up, 3x3 per channel, 1x1 down without activation; added to its input where
    the shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBlock(_conv(in_channels, inner, 1, norm), norm))
        layers.append(ConvBlock(_conv(inner, inner, 3, norm, stride, groups=inner), norm))
        layers.append(_conv(inner, out_channels, 1, norm))
        if (module := make_norm(norm, out_channels)) is not None:
            layers.append(module)
        self.conv = nn.Sequential(*layers)
        self.num_blocks = 1 if expansion == 1 else 2
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.conv[: self.num_blocks]:
            y = block(y)
        norm = self.conv[self.num_blocks + 1] if len(self.conv) > self.num_blocks + 1 else None
        y = _apply(y, self.conv[self.num_blocks], norm)
        return y.add_(x) if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2's layers up to the last inverted residual. forward: (B, 3, H, W) -> {"stride4": ..., "stride32":
    (B, C, H/32, W/32)}.
    """

    def __init__(self, config: MobileNetV2Config, in_channels: int = 3) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            # Multiples of 8, never under 90 % of what was asked for, as in the published models.
            wanted = channels * config.width
            rounded = max(8, int(wanted + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * wanted else rounded

        channels = scaled(32)
        features: list[nn.Module] = [
            ConvBlock(_conv(in_channels, channels, 3, config.norm, stride=2), config.norm)
        ]
        for expansion, out_channels, repeats, stride in INVERTED_RESIDUALS:
            for i in range(repeats):
                out = scaled(out_channels)
                features.append(
                    InvertedResidual(channels, out, stride if i == 0 else 1, expansion, config.norm)
                )
                channels = out
        self.features = nn.Sequential(*features)
        names = list(STAGE_ENDS)[1:]
        self.out_channels = {name: _out_channels(self.features[STAGE_ENDS[name]]) for name in names}
        self.strides = {name: int(name.removeprefix("stride")) for name in names}
        if config.frozen_stages:
            end = list(STAGE_ENDS.values())[config.frozen_stages - 1]
            freeze(self.features[: end + 1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        names = {index: name for name, index in STAGE_ENDS.items() if name in self.out_channels}
        for i, block in enumerate(self.features):
            x = block(x)
            if i in names:
                outputs[names[i]] = x
        return outputs


def _out_channels(block: nn.Module) -> int:
    assert isinstance(block, InvertedResidual)
    conv = block.conv[block.num_blocks]
    assert isinstance(conv, nn.Conv2d)
    return conv.out_channels


build = MobileNetV2
