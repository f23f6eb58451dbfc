"""ViT-Adapter: Chen et al. 2022 (arXiv 2205.08534), with the original's parameter names.

Beside a plain ViT stands a small convolutional network, the spatial prior, whose maps of strides 8, 16 and 32 are one
sequence of tokens. Four times on the way they exchange by deformable attention: an injector adds them to the ViT's
tokens, a few blocks run, and an extractor adds the ViT's tokens to them. What comes of both is the pyramid.

Shape letters: B images, H x W patches an image (stride 16), N = H * W tokens of the ViT, S = (4 + 1 + 1/4) N tokens of
the prior, C channels, Q queries, M heads, L maps, P points a map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from maskrcnn.backbones.layers import make_norm
from maskrcnn.backbones.vit import Size, Trunk, ViT, as_map, as_tokens, initialize, layer_of
from maskrcnn.config import AdapterConfig, ViTConfig
from maskrcnn.ops.deformable import ms_deform_attn
from maskrcnn.ops.transfer import small_table

__all__ = ["ViTAdapter", "build", "layer_of"]  # the family's; the rest is for `engines`


class ViTAdapter(Trunk):
    """Plain ViT with the spatial prior beside it. forward: (B, 3, h, w) -> {"c2": (B, C, h/4, w/4), ..., "c5": (B, C,
    h/32, w/32)}; h and w multiples of 32.
    """

    def __init__(self, config: ViTConfig, in_channels: int = 3) -> None:
        super().__init__(config, in_channels)
        assert config.adapter is not None
        adapter, dim = config.adapter, config.dim
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPrior(dim, adapter.conv_channels, in_channels)
        extra = [0] * (len(adapter.interactions) - 1) + [adapter.extra_extractors]
        self.interactions = nn.ModuleList(
            Interaction(dim, adapter, drop_path=config.drop_path, eps=self.eps, num_extra=num_extra)
            for num_extra in extra
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (_batch_norm(dim) for _ in range(4))
        self.out_channels = {f"c{level}": dim for level in range(2, 6)}
        self.strides = {f"c{level}": 2**level for level in range(2, 6)}
        self.apply(initialize)
        self.apply(_start_deformable_attention)
        nn.init.normal_(self.level_embed)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        assert self.config.adapter is not None
        c1, *levels = self.spm(pixels)
        c = torch.cat([level + embed for level, embed in zip(levels, self.level_embed, strict=True)], dim=1)
        x, size = self.embed(pixels)
        for interaction, (first, last) in zip(
            self.interactions, self.config.adapter.interactions, strict=True
        ):
            assert isinstance(interaction, Interaction)
            x = self.recomputed(interaction.injector, x, c, size)
            x = self.run_blocks(x, size, first, last)
            for extractor in (interaction.extractor, *interaction.extra_extractors):
                c = self.recomputed(extractor, c, x, size)
        sizes = pyramid(size)
        maps = [
            as_map(level, s)
            for level, s in zip(c.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        return {f"c{i}": level for i, level in enumerate(self.merge(c1, maps, as_map(x, size)), 2)}

    def merge(self, c1: Tensor, maps: list[Tensor], vit: Tensor) -> list[Tensor]:
        """Add the ViT's map, resized, to the prior's four, and normalise them. c1 (B, C, h/4, w/4); maps: the other
        three.
        """
        c2, c3, c4 = maps
        c1 = c1 + self.up(c2) + F.interpolate(vit, scale_factor=4, mode="bilinear")
        c2 = c2 + F.interpolate(vit, scale_factor=2, mode="bilinear")
        c4 = c4 + F.interpolate(vit, scale_factor=0.5, mode="bilinear")
        return [self.norm1(c1), self.norm2(c2), self.norm3(c3 + vit), self.norm4(c4)]


class SpatialPrior(nn.Module):
    """Convolutional stem of the adapter: (B, 3, h, w) -> the map of stride 4, (B, C, h/4, w/4), and the tokens of
    strides 8, 16 and 32.
    """

    def __init__(self, dim: int, channels: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_relu(in_channels, channels, stride=2),
            *_conv_norm_relu(channels, channels, stride=1),
            *_conv_norm_relu(channels, channels, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_relu(channels, 2 * channels, stride=2))
        self.conv3 = nn.Sequential(*_conv_norm_relu(2 * channels, 4 * channels, stride=2))
        self.conv4 = nn.Sequential(*_conv_norm_relu(4 * channels, 4 * channels, stride=2))
        self.fc1 = nn.Conv2d(channels, dim, 1)
        self.fc2 = nn.Conv2d(2 * channels, dim, 1)
        self.fc3 = nn.Conv2d(4 * channels, dim, 1)
        self.fc4 = nn.Conv2d(4 * channels, dim, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(pixels)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), as_tokens(self.fc2(c2)), as_tokens(self.fc3(c3)), as_tokens(self.fc4(c4))


def _conv_norm_relu(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, _batch_norm(out_channels), nn.ReLU(inplace=True)]


def _batch_norm(channels: int) -> nn.Module:
    """Batch normalisation over the images of all processes."""
    norm = make_norm("sync_bn", channels)
    assert norm is not None
    return norm


class Interaction(nn.Module):
    """Injector before and extractor after a few blocks of the ViT; after the last ones usually two more extractors."""

    def __init__(
        self, dim: int, config: AdapterConfig, *, drop_path: float, eps: float, num_extra: int
    ) -> None:
        super().__init__()
        self.injector = Injector(dim, config, eps=eps)
        self.extractor = Extractor(dim, config, drop_path=drop_path, eps=eps)
        self.extra_extractors = nn.ModuleList(
            Extractor(dim, config, drop_path=drop_path, eps=eps) for _ in range(num_extra)
        )


class Injector(nn.Module):
    """Add to the ViT's tokens what they sample from the prior's three maps: (B, N, C), (B, S, C) -> (B, N, C)."""

    def __init__(self, dim: int, config: AdapterConfig, *, eps: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=eps)
        self.feat_norm = nn.LayerNorm(dim, eps=eps)
        self.attn = DeformableAttention(dim, config, num_levels=3)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, c: Tensor, size: Size) -> Tensor:
        sampled = self.attn(x, self.query_norm, [size], c, self.feat_norm, pyramid(size))
        return x.addcmul(self.gamma, self.attn.output_proj(sampled))


class Extractor(nn.Module):
    """Add to the prior's tokens what they sample from the ViT's map: (B, S, C), (B, N, C) -> (B, S, C)."""

    def __init__(self, dim: int, config: AdapterConfig, *, drop_path: float, eps: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.query_norm = nn.LayerNorm(dim, eps=eps)
        self.feat_norm = nn.LayerNorm(dim, eps=eps)
        self.attn = DeformableAttention(dim, config, num_levels=1)
        self.ffn = ConvFFN(dim, int(dim * config.ffn_ratio))
        self.ffn_norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, c: Tensor, x: Tensor, size: Size) -> Tensor:
        sampled = self.attn(c, self.query_norm, pyramid(size), x, self.feat_norm, [size])
        c = c + self.attn.output_proj(sampled)
        return c + stochastic_depth(self.ffn(self.ffn_norm(c), size), self.drop_path, "row", self.training)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each head of each query sums P samples of each of L maps, at places and with
    weights that are predicted from the query.

    forward: query (B, Q, C), its norm and the (H, W) of the maps whose places it is; feat (B, S, C), its norm and those
    of its L maps -> (B, Q, C'), to be projected by `output_proj`.
    """

    def __init__(self, dim: int, config: AdapterConfig, *, num_levels: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = config.num_heads, num_levels, config.num_points
        points = self.num_heads * num_levels * self.num_points
        value_dim = int(dim * config.deform_ratio)
        self.sampling_offsets = nn.Linear(dim, 2 * points)
        self.attention_weights = nn.Linear(dim, points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)

    def forward(
        self,
        query: Tensor,
        query_norm: nn.Module,
        query_sizes: list[Size],
        feat: Tensor,
        feat_norm: nn.Module,
        sizes: list[Size],
    ) -> Tensor:
        M, L, P = self.num_heads, self.num_levels, self.num_points
        # Places in float32 at least: bfloat16 has 8 bits, and a map more places than that.
        real = torch.promote_types(query.dtype, torch.float32)
        value = self.value_proj(feat_norm(feat)).unflatten(-1, (M, -1))
        value = value.to(self.value_proj.weight.dtype)  # not autocast's
        offsets, weights = self.modulation(query_norm(query))
        offsets = offsets.to(real).unflatten(-1, (M, L, P, 2))
        extent = small_table(sizes, query.device, real).flip(1)[:, None]  # (L, 1, 2): W, H
        locations = centres(query_sizes, real, query.device)[:, None, None, None] + offsets / extent
        return ms_deform_attn(value, sizes, locations, weights.unflatten(-1, (L, P)))

    def modulation(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the samples' offsets (B, Q, 2 M L P), in places of their maps, and their weights (B, Q, M, L P)."""
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        real = torch.promote_types(query.dtype, torch.float32)
        return self.sampling_offsets(query), logits.to(real).softmax(-1)


class ConvFFN(nn.Module):
    """MLP with a depthwise 3x3 convolution on each of the prior's three maps between its two layers."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, c: Tensor, size: Size) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(c), size)))


class DepthwiseConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, c: Tensor, size: Size) -> Tensor:
        sizes = pyramid(size)
        levels = c.split([h * w for h, w in sizes], dim=1)
        return torch.cat(
            [as_tokens(self.dwconv(as_map(level, s))) for level, s in zip(levels, sizes, strict=True)], dim=1
        )


def pyramid(size: Size) -> list[Size]:
    """Sizes (H, W) of the prior's maps, strides 8, 16 and 32, beside H x W patches."""
    h, w = size
    return [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]


def centres(sizes: list[Size], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Centres (x, y) of every cell of all maps, (places, 2), 0..1 from edge to edge of its map."""
    places = []
    for h, w in sizes:
        y = (torch.arange(h, dtype=dtype, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=dtype, device=device) + 0.5) / w
        places.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1).flatten(0, 1))
    return torch.cat(places)


def _start_deformable_attention(module: nn.Module) -> None:
    """Initialise deformable attention with equal weights, and each head's points in its own direction, one cell
    further each (Zhu et al. 2021).
    """
    if not isinstance(module, DeformableAttention):
        return
    M, L, P = module.num_heads, module.num_levels, module.num_points
    angle = torch.arange(M, dtype=torch.float32) * (2 * math.pi / M)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, P + 1, dtype=torch.float32)[:, None]
    nn.init.zeros_(module.sampling_offsets.weight)
    with torch.no_grad():
        module.sampling_offsets.bias.copy_((direction[:, None, None] * steps).expand(M, L, P, 2).flatten())
    nn.init.zeros_(module.attention_weights.weight)
    for linear in (module.value_proj, module.output_proj):
        nn.init.xavier_uniform_(linear.weight)


def build(config: ViTConfig, in_channels: int = 3) -> Trunk:
    """Build the plain ViT, ViTDet's, or the one with an adapter."""
    if config.relative_positions:
        from maskrcnn.backbones.vitdet import ViTDet

        return ViTDet(config, in_channels)
    return (ViT if config.adapter is None else ViTAdapter)(config, in_channels)
