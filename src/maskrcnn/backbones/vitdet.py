"""ViTDet's backbone: Li et al. 2022 (arXiv 2203.16527), with the original's parameter names.

A plain ViT whose attention knows how far apart two places are, in rows and in columns (Li et al. 2021, arXiv
2112.01526), and of whose last map alone a pyramid is made. Windows that reach over the edge are filled with tokens of
zeros before the projection, so that what fills them has the projection's bias.

Shape letters: B images, H x W patches an image, N = H * W tokens, C channels, M heads, D = C / M.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import ChannelNorm, Conv
from maskrcnn.backbones.vit import Size, Trunk, as_map, from_windows, initialize, to_windows
from maskrcnn.config import FPNConfig, ViTConfig


class ViTDet(Trunk):
    """ViT with relative positions. forward: (B, 3, h, w) -> {"c4": (B, C, h/16, w/16)}."""

    def __init__(self, config: ViTConfig, in_channels: int = 3) -> None:
        grid = config.image_size // config.patch_size
        super().__init__(
            config,
            in_channels,
            lambda window: RelativeAttention(config.dim, config.num_heads, window, window or grid),
        )
        self.out_channels, self.strides = {"c4": config.dim}, {"c4": config.patch_size}
        self.apply(initialize)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x, size = self.embed(pixels)
        return {"c4": as_map(self.run_blocks(x, size, 0, self.config.depth - 1), size)}


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, over windows or over all places: (B, N, C) -> (B, N, C).

    grid: rows and columns of places that the tables of positions are made for; for others they are resized.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None, grid: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        qkv, window = self.qkv(x), self.window
        if window is None:
            return self.proj(self.attend(qkv, size))
        windows = to_windows(qkv, size, window, self.qkv.bias.to(qkv.dtype))
        return self.proj(from_windows(self.attend(windows, (window, window)), size, window))

    def attend(self, qkv: Tensor, size: Size) -> Tensor:
        """Attend among all places of `size`: (B, N, 3 C) -> (B, N, C).

        The logit of a query q and a key k is q k / sqrt(D) + q Rh[their rows' distance] + q Rw[their columns']. It is
        computed as one product of longer vectors: behind q stand its products with the row of Rh and of Rw for every
        row and column, behind k ones at its own row and column. So no table of N x N positions is made. Values get
        zeros, for kernels want one length.
        """
        (h, w), dim = size, self.rel_pos_h.shape[1]
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, dim)).permute(2, 0, 3, 1, 4)  # (B, M, N, D)
        places = q.unflatten(2, size)
        of_rows = torch.einsum("bmhwd,hkd->bmhwk", places, positions(self.rel_pos_h, h).to(q.dtype))
        of_columns = torch.einsum("bmhwd,wkd->bmhwk", places, positions(self.rel_pos_w, w).to(q.dtype))
        q = torch.cat([q * dim**-0.5, of_rows.flatten(2, 3), of_columns.flatten(2, 3)], dim=-1)
        rows = torch.eye(h, dtype=q.dtype, device=q.device)[:, None].expand(h, w, h)
        columns = torch.eye(w, dtype=q.dtype, device=q.device)[None].expand(h, w, w)
        own = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        k = torch.cat([k, own.expand(*k.shape[:2], -1, -1)], dim=-1)
        x = F.scaled_dot_product_attention(q, k, F.pad(v, (0, h + w)), scale=1.0)
        return x[..., :dim].transpose(1, 2).flatten(2)


def positions(table: Tensor, length: int) -> Tensor:
    """Row of the table for each distance of two of `length` places: (2 S - 1, D) -> (length, length, D).

    A table for another number of places is resized linearly.
    """
    if len(table) != 2 * length - 1:
        table = F.interpolate(table.T[None], size=2 * length - 1, mode="linear", align_corners=False)[0].T
    places = torch.arange(length, device=table.device)
    return table[places[:, None] - places[None] + length - 1]


class SimplePyramid(nn.Module):
    """Pyramid of one map of stride 16: enlarged, as it is, and halved, with two convolutions a level. P6 is every
    second place of P5.

    forward: [(B, C, H, W)] -> [P2, P3, P4, P5, P6], all with `out_channels`.
    """

    def __init__(self, in_channels: list[int], config: FPNConfig) -> None:
        super().__init__()
        (dim,), out = in_channels, config.out_channels
        half, quarter = dim // 2, dim // 4

        def convs(channels: int) -> list[nn.Module]:
            return [Conv(channels, out, 1, norm=config.norm), Conv(out, out, 3, norm=config.norm)]

        def enlarge(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)

        self.simfp_2 = nn.Sequential(
            enlarge(dim), ChannelNorm(half), nn.GELU(), enlarge(half), *convs(quarter)
        )
        self.simfp_3 = nn.Sequential(enlarge(dim), *convs(half))
        self.simfp_4 = nn.Sequential(*convs(dim))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2), *convs(dim))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        (x,) = features
        levels = [level(x) for level in (self.simfp_2, self.simfp_3, self.simfp_4, self.simfp_5)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
