"""Swin Transformer: Liu et al. 2021 (arXiv 2103.14030), with the original's parameter names.

Attention over windows of 7 x 7 places; in every other block the windows are shifted by half of their size, and places
that the shift brought together from different sides do not see each other. Maps are (B, H, W, C) inside.

Shape letters: B images, C channels, M heads, T x T places a window, W windows of an image.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from maskrcnn.config import SwinConfig

EPS = 1e-5
APART = -100.0  # added to the logit of two places that do not belong together


class Swin(nn.Module):
    """Swin's four stages. forward: (B, 3, H, W) -> {"stage0": (B, C, H/4, W/4), ... "stage3": (B, 8 C, H/32, W/32)}.

    What a stage hands to the pyramid is normalised; what it hands to the next stage is not.
    """

    def __init__(self, config: SwinConfig, in_channels: int = 3) -> None:
        super().__init__()
        channels = [config.channels * 2**i for i in range(4)]
        total = sum(config.depths)
        rates = [config.drop_path * i / max(1, total - 1) for i in range(total)]
        self.patch_embed = PatchEmbed(channels[0], in_channels)
        self.layers = nn.ModuleList(
            Stage(c, heads, config.window_size, [rates.pop(0) for _ in range(depth)], downsample=i < 3)
            for i, (c, heads, depth) in enumerate(zip(channels, config.num_heads, config.depths, strict=True))
        )
        for i, c in enumerate(channels):
            self.add_module(f"norm{i}", nn.LayerNorm(c, eps=EPS))
        self.out_channels = {f"stage{i}": c for i, c in enumerate(channels)}
        self.strides = {f"stage{i}": 4 * 2**i for i in range(4)}
        self.apply(_initialize)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        x = self.patch_embed(x)
        for i, layer in enumerate(self.layers):
            x, following = layer(x)
            outputs[f"stage{i}"] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            x = following
        return outputs


class PatchEmbed(nn.Module):
    """Linear embedding of patches of 4 x 4 pixels, normalised: (B, 3, H, W) -> (B, H/4, W/4, C)."""

    def __init__(self, channels: int, in_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        x = F.pad(x, (0, _missing(W, 4), 0, _missing(H, 4)))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks of one resolution. forward: (B, H, W, C) -> their output, and the input of the next stage."""

    def __init__(
        self, channels: int, num_heads: int, window: int, rates: list[float], *, downsample: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, window, shift=window // 2 if i % 2 else 0, drop_path=rate)
            for i, rate in enumerate(rates)
        )
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchMerging(nn.Module):
    """Four neighbours to one place of twice the channels: (B, H, W, C) -> (B, H/2, W/2, 2 C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=EPS)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, _missing(W, 2), 0, _missing(H, 2)))
        neighbours = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class Block(nn.Module):
    """Window attention, then an MLP, each after a norm and with a residual: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, num_heads: int, window: int, *, shift: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = WindowAttention(channels, num_heads, window, shift)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MLP(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        for module, norm in ((self.attn, self.norm1), (self.mlp, self.norm2)):
            x = x + stochastic_depth(module(norm(x)), self.drop_path, "row", self.training)
        return x


class MLP(nn.Module):
    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Self-attention within windows, shifted by `shift` places, with a learnt bias for each distance of two places:
    (B, H, W, C) -> (B, H, W, C).

    The map is filled up to whole windows with zeros, before queries and keys are made of it: the filling is attended
    to with its bias, as in the original.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        (B, H, W, C), T = x.shape, self.window
        x = F.pad(x, (0, 0, 0, _missing(W, T), 0, _missing(H, T)))
        down, right = x.shape[1] // T, x.shape[2] // T
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = x.view(B, down, T, right, T, C).transpose(2, 3).reshape(B * down * right, T * T, C)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        windows = F.scaled_dot_product_attention(q, k, v, self.bias(B, down, right, q.dtype))
        windows = self.proj(windows.transpose(1, 2).flatten(2))
        x = windows.view(B, down, right, T, T, C).transpose(2, 3).reshape(B, down * T, right * T, C)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :H, :W]

    def bias(self, B: int, down: int, right: int, dtype: torch.dtype) -> Tensor:
        """Numbers added to the logits: (1, M, T * T, T * T) of all windows alike, or (B * W, ...) of shifted ones."""
        bias = self.relative_position_bias_table[self.relative_position_index]  # (T * T, T * T, M)
        bias = bias.permute(2, 0, 1)[None].to(dtype)
        if not self.shift:
            return bias
        apart = self.apart(down, right)[:, None].to(dtype) * APART
        return (bias + apart).expand(B, -1, -1, -1, -1).flatten(0, 1)

    def apart(self, down: int, right: int) -> Tensor:
        """Pairs of places of shifted windows that are from different sides of the map: (W, T * T, T * T) bool."""
        device = self.relative_position_bias_table.device
        rows, columns = (_region(n * self.window, self.window, self.shift, device) for n in (down, right))
        region = 3 * rows[:, None] + columns[None, :]
        region = region.view(down, self.window, right, self.window).transpose(1, 2).flatten(0, 1).flatten(1)
        return region[:, :, None] != region[:, None, :]


def _missing(length: int, unit: int) -> int:
    """Places that a side lacks of whole units. By division: runtimes' graphs know no remainder of sizes, and round
    negative ones otherwise.
    """
    return (length + unit - 1) // unit * unit - length


def _region(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the parts of a shifted side: before the last window, and the two that meet in it."""
    place = torch.arange(length, device=device)
    return (place >= length - window).long() + (place >= length - shift).long()


def relative_positions(window: int) -> Tensor:
    """Index into the table of biases of each pair of places of a window, row by row: (T * T, T * T) int64."""
    places = torch.tensor(list(itertools.product(range(window), range(window))))
    distance = places[:, None] - places[None, :] + window - 1
    return distance[..., 0] * (2 * window - 1) + distance[..., 1]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


build = Swin
