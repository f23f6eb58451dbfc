"""Plain vision transformer for detection: Dosovitskiy et al. 2020 (arXiv 2010.11929), with window and global attention
as in Li et al. 2022 (arXiv 2203.16527) and ViT-Adapter's baselines; the originals' parameter names.

Attention is over windows of 14 x 14 places, except in a few blocks, where it is over all of them. Windows that reach
over the edge are filled up, and nothing masks the filling: its keys take part with logit 0 and value 0. There is no
class token and no last norm. Uni-Perceiver's transformer (Zhu et al. 2021, arXiv 2112.01522) differs in its embedding,
in the scales that its blocks begin with, and in what windows are filled with.

Shape letters: B images, H x W patches an image, N = H * W tokens, C channels, M heads, T x T places a window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import stochastic_depth

from maskrcnn.config import ViTConfig
from maskrcnn.errors import UserError

Size = tuple[int, int]  # (H, W) in patches


class Trunk(nn.Module):
    """Patch embedding and transformer blocks, from which `ViT` here, `ViTAdapter` and `ViTDet` build their pyramids.

    attention: makes a block's from its window, None for a global one; by default `Attention`.
    """

    def __init__(
        self,
        config: ViTConfig,
        in_channels: int = 3,
        attention: Callable[[int | None], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.eps = 1e-5 if config.uni_perceiver else 1e-6
        self.blocks = nn.ModuleList()
        for i in range(config.depth):
            window = None if i in config.global_blocks else config.window_size
            self.blocks.append(
                Block(
                    attention(window)
                    if attention
                    else Attention(config.dim, config.num_heads, window, config.uni_perceiver),
                    config.dim,
                    int(config.dim * config.mlp_ratio),
                    drop_path=config.drop_path * i / max(1, config.depth - 1),
                    eps=self.eps,
                    scale=(0.0 if config.uni_perceiver else 1.0) if config.layer_scale else None,
                )
            )
        grid = config.pretrain_size // config.patch_size
        if config.uni_perceiver:
            self.visual_embed = UniPerceiverEmbed(config.dim, config.patch_size, grid, self.eps, in_channels)
        else:
            self.patch_embed = PatchEmbed(config.dim, config.patch_size, in_channels)
            self.pos_embed = nn.Parameter(
                torch.zeros(1, 1 + grid**2, config.dim)
            )  # first: a class token's, unused
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, pixels: Tensor) -> tuple[Tensor, Size]:
        """Embed the patches of images (B, 3, h, w): tokens (B, N, C) and their (H, W)."""
        size = (pixels.shape[2] // self.config.patch_size, pixels.shape[3] // self.config.patch_size)
        if self.config.uni_perceiver:
            return self.visual_embed(pixels, size), size
        return self.patch_embed(pixels) + resize_embedding(self.pos_embed[:, 1:], size), size

    def run_blocks(self, x: Tensor, size: Size, first: int, last: int) -> Tensor:
        """Run the blocks `first` to `last`, both included: (B, N, C) -> (B, N, C)."""
        for block in self.blocks[first : last + 1]:
            x = self.recomputed(block, x, size)
        return x

    def recomputed(self, module: nn.Module, *args: object) -> Tensor:
        """Call module(*args); with `checkpointing` its intermediate results are computed again in the backward pass."""
        if self.config.checkpointing and self.training:
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)


class ViT(Trunk):
    """Plain ViT with a pyramid from the outputs of each quarter of its blocks, whose last one is global in the
    published models.

    forward: (B, 3, h, w) -> {"c2": (B, C, h/4, w/4), ..., "c5": (B, C, h/32, w/32)}.
    """

    def __init__(self, config: ViTConfig, in_channels: int = 3) -> None:
        super().__init__(config, in_channels)
        dim = config.dim
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, eps=self.eps) for _ in range(4))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
            nn.GroupNorm(32, dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.up3 = nn.Identity()
        self.up4 = nn.MaxPool2d(2)
        self.out_channels = {f"c{level}": dim for level in range(2, 6)}
        self.strides = {f"c{level}": 2**level for level in range(2, 6)}
        self.apply(initialize)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x, size = self.embed(pixels)
        outputs = {}
        norms, ups = (
            (self.norm1, self.norm2, self.norm3, self.norm4),
            (self.up1, self.up2, self.up3, self.up4),
        )
        for i, (norm, up) in enumerate(zip(norms, ups, strict=True)):
            x = self.run_blocks(x, size, i * self.config.depth // 4, (i + 1) * self.config.depth // 4 - 1)
            outputs[f"c{i + 2}"] = up(as_map(norm(x), size))
        return outputs


class PatchEmbed(nn.Module):
    """Linear embedding of patches: (B, 3, h, w) -> (B, N, C)."""

    def __init__(self, dim: int, patch_size: int, in_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return as_tokens(self.proj(pixels))


class UniPerceiverEmbed(nn.Module):
    """Uni-Perceiver's embedding of patches and places, normalised: (B, 3, h, w) -> (B, N, C)."""

    def __init__(self, dim: int, patch_size: int, grid: int, eps: float, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = UniPerceiverPatchEmbed(dim, patch_size, grid, in_channels)
        self.embeddings_norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, pixels: Tensor, size: Size) -> Tensor:
        return self.embeddings_norm(self.patch_embed(pixels, size))


class UniPerceiverPatchEmbed(nn.Module):
    """Uni-Perceiver's embedding of the patches of a video of up to eight frames; an image is the first frame of one."""

    def __init__(self, dim: int, patch_size: int, grid: int, in_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.spatial_pos_embed = nn.Embedding(grid**2, dim)
        self.temporal_pos_embed = nn.Embedding(8, dim)

    def forward(self, pixels: Tensor, size: Size) -> Tensor:
        places = resize_embedding(self.spatial_pos_embed.weight[None], size)
        return as_tokens(self.proj(pixels)) + (places + self.temporal_pos_embed.weight[0])


class Block(nn.Module):
    """Transformer block: attention, then an MLP, each after a norm, with a residual and a scale per channel that begins
    at `scale`, or none: (B, N, C) -> (B, N, C).
    """

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        hidden_dim: int,
        *,
        drop_path: float,
        eps: float,
        scale: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, hidden_dim)
        self.gamma1 = self.gamma2 = None
        if scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = _add(x, self.gamma1, self.dropped(self.attn(self.norm1(x), size)))
        return _add(x, self.gamma2, self.dropped(self.mlp(self.norm2(x))))

    def dropped(self, y: Tensor) -> Tensor:
        """Leave y (B, ...) out of an image in training, with the probability `drop_path`: stochastic depth."""
        return stochastic_depth(y, self.drop_path, "row", self.training)


def _add(x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
    return x + y if scale is None else x.addcmul(scale, y)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Self-attention over windows of `window` squared places, or over all places: (B, N, C) -> (B, N, C).

    fill_with_bias: windows that reach over the edge are filled with the projection of nothing, which is the bias, as
    in Uni-Perceiver, instead of zeros.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None, fill_with_bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.window, self.fill_with_bias = num_heads, window, fill_with_bias
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        qkv = self.qkv(x)
        filling = self.qkv.bias.to(qkv.dtype) if self.fill_with_bias else qkv.new_zeros(())
        return self.proj(attend(qkv, size, self.num_heads, self.window, filling))


def attend(qkv: Tensor, size: Size, num_heads: int, window: int | None, filling: Tensor) -> Tensor:
    """Attention of queries, keys and values (B, N, 3 C) within windows, or among all places: (B, N, C).

    Windows beyond the edge are filled with `filling`, (3 C,) or a scalar.
    """
    if window is None:
        return _attend(qkv, num_heads)
    windows = to_windows(qkv, size, window, filling)
    return from_windows(_attend(windows, num_heads), size, window)


def _attend(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def to_windows(x: Tensor, size: Size, window: int, filling: Tensor) -> Tensor:
    """Cut tokens into windows, copied once: (B, N, C) -> (B * windows, T * T, C)."""
    (B, _, C), (H, W) = x.shape, size
    down, right = -(-H // window), -(-W // window)
    windows = x.new_empty(B, down, right, window, window, C)
    for there, here, split in _tiles(size, window):
        windows[there] = _split(x.view(B, H, W, C)[here], split)
    if H % window:
        windows[:, -1, :, H % window :] = filling
    if W % window:
        windows[:, :, -1, :, W % window :] = filling
    return windows.view(-1, window * window, C)


def from_windows(windows: Tensor, size: Size, window: int) -> Tensor:
    """Put windows back together to tokens, copied once: (B * windows, T * T, C) -> (B, N, C)."""
    H, W = size
    down, right = -(-H // window), -(-W // window)
    windows = windows.view(-1, down, right, window, window, windows.shape[-1])
    x = windows.new_empty(len(windows), H, W, windows.shape[-1])
    for there, here, split in _tiles(size, window):
        _split(x[here], split).copy_(windows[there])
    return x.flatten(1, 2)


Index = tuple[slice, ...]


def _tiles(size: Size, window: int) -> Iterator[tuple[Index, Index, tuple[int, int]]]:
    """Yield the groups of windows: the whole ones, those cut by the right edge, by the lower one and by both. For
    each its index among the windows, its index in the image, and how many windows it has, (down, right).
    """

    def runs(length: int) -> Iterator[tuple[slice, slice, slice, int]]:
        whole, rest = divmod(length, window)
        if whole:
            yield slice(whole), slice(window), slice(whole * window), whole
        if rest:
            yield slice(whole, whole + 1), slice(rest), slice(whole * window, length), 1

    for i, y, rows, down in runs(size[0]):
        for j, x, columns, right in runs(size[1]):
            yield (slice(None), i, j, y, x), (slice(None), rows, columns), (down, right)


def _split(x: Tensor, parts: tuple[int, int]) -> Tensor:
    """View of a map (B, down * h, right * w, C) as its windows, (B, down, right, h, w, C)."""
    down, right = parts
    return x.unflatten(2, (right, -1)).unflatten(1, (down, -1)).transpose(2, 3)


def resize_embedding(embedding: Tensor, size: Size) -> Tensor:
    """Resize a square grid's position embedding bicubically: (1, G * G, C) -> (1, N, C)."""
    grid = round(embedding.shape[1] ** 0.5)
    if size == (grid, grid):
        return embedding
    square = as_map(embedding, (grid, grid))
    return as_tokens(F.interpolate(square, size=size, mode="bicubic", align_corners=False))


def as_map(tokens: Tensor, size: Size) -> Tensor:
    """View of tokens (B, N, C) as a channels-last map (B, C, H, W), without a copy."""
    # Not transposed and then unflattened: at B = 1 that gives the first axis a stride by which batch normalisation's
    # gradient on the CPU is wrong (PyTorch 2.15).
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """Tokens (B, N, C) of a map (B, C, H, W), without a copy where the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


def _check(config: ViTConfig) -> None:
    def expect(holds: bool, setting: str, what: str, value: object) -> None:
        if not holds:
            raise UserError(f"model.backbone.{setting}: expected {what}, got {value}.")

    heads, depth = config.num_heads, config.depth
    expect(config.dim % heads == 0, "dim", f"a multiple of the {heads} heads", config.dim)
    expect(depth >= 4, "depth", "at least 4 blocks, one for each map of the pyramid", depth)
    if (adapter := config.adapter) is None:
        expect(config.dim % 32 == 0, "dim", "a multiple of the 32 groups of a normalisation", config.dim)
        return
    value_dim, deformable = int(config.dim * adapter.deform_ratio), adapter.num_heads
    expect(
        value_dim % deformable == 0 and value_dim > 0,
        "adapter.deform_ratio",
        f"dim x deform_ratio to be a multiple of the {deformable} heads",
        value_dim,
    )
    blocks = [i for first, last in adapter.interactions for i in range(first, last + 1)]
    expect(
        blocks == list(range(depth)),
        "adapter.interactions",
        f"first and last blocks that follow each other from 0 to {depth - 1}",
        adapter.interactions,
    )


def initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def layer_of(name: str, config: ViTConfig) -> tuple[int | None, int]:
    """Layer of a parameter (0 the embeddings, from 1 the blocks, None for an adapter's), and the number of blocks."""
    if name.startswith(("patch_embed.", "visual_embed.", "pos_embed")):
        return 0, config.depth
    found = re.match(r"blocks\.(\d+)\.", name)
    return None if found is None else 1 + int(found[1]), config.depth
