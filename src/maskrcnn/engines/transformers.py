"""Transformers' parts in inference on CPUs: results overwrite what nobody else needs, as fresh memory costs more than
the arithmetic, and layers run over some rows at a time, so that what lies between them stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones import internimage
from maskrcnn.backbones.layers import FrozenBatchNorm
from maskrcnn.backbones.vit_adapter import DeformableAttention, ViTAdapter

PIECE_BYTES = 1 << 22  # of what is made and used piece by piece


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a function that treats each row by itself: (.., C) to (.., C'), some rows at a time. Its intermediate
    results have `width` numbers a row.
    """
    step = max(1, PIECE_BYTES // (width * x.element_size()))
    rows = x.flatten(0, -2)
    if len(rows) <= step:
        return function(x)
    out: Tensor | None = None
    for i in range(0, len(rows), step):
        piece = function(rows[i : i + step])
        out = piece.new_empty(len(rows), piece.shape[-1]) if out is None else out
        out[i : i + step] = piece
    assert out is not None
    return out.view(*x.shape[:-1], -1)


def gelu(x: Tensor) -> Tensor:
    """Overwrite x with its GELU."""
    return torch.ops.aten.gelu_(x)


def softmax(x: Tensor) -> Tensor:
    """Softmax over a last axis of few numbers. PyTorch's on the CPU takes four times as long for nine of them."""
    real = x.to(torch.promote_types(x.dtype, torch.float32))
    real = (real - real.amax(-1, keepdim=True)).exp_()
    return real.div_(real.sum(-1, keepdim=True)).to(x.dtype)


def mlp(self: internimage.MLP, x: Tensor) -> Tensor:
    """`internimage.MLP.forward` in pieces."""
    return in_pieces(lambda piece: self.fc2(gelu(self.fc1(piece))), x, self.fc1.out_features)


def modulation(self: internimage.DCNv3, x: Tensor) -> tuple[Tensor, Tensor]:
    """`DCNv3.modulation` with the quicker softmax."""
    conv, norm = self.dw_conv
    local = gelu(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    return self.offset(local), softmax(self.mask(local).unflatten(-1, (self.groups, -1))).flatten(-2)


def adapter_modulation(self: DeformableAttention, query: Tensor) -> tuple[Tensor, Tensor]:
    """`DeformableAttention.modulation` with the quicker softmax."""
    logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
    return self.sampling_offsets(query), softmax(logits.to(torch.promote_types(query.dtype, torch.float32)))


def merge(self: ViTAdapter, c1: Tensor, maps: list[Tensor], vit: Tensor) -> list[Tensor]:
    """`ViTAdapter.merge` that overwrites the prior's maps, some lines at a time."""
    c2, c3, c4 = maps
    c1 = add_resized(add_enlarged(c1, c2, self.up), vit, 4)
    c2 = add_resized(c2, vit, 2)
    c4 = c4 + F.interpolate(vit, scale_factor=0.5, mode="bilinear")
    norms = (self.norm1, self.norm2, self.norm3, self.norm4)
    return [batch_norm(c, norm) for c, norm in zip((c1, c2, c3 + vit, c4), norms, strict=True)]


def add_resized(x: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """Add to x, where it lies, the map `coarse`, enlarged bilinearly by `factor`."""
    height = coarse.shape[2]
    step = max(1, PIECE_BYTES * height // (x.numel() * x.element_size()))
    for i in range(0, height, step):
        first, last = max(i - 1, 0), min(i + step + 1, height)  # a line of neighbours on either side
        lines = F.interpolate(coarse[:, :, first:last], scale_factor=factor, mode="bilinear")
        here = slice(factor * i, factor * min(i + step, height))
        x[:, :, here] += lines[:, :, here.start - factor * first : here.stop - factor * first]
    return x


def add_enlarged(x: Tensor, coarse: Tensor, enlarge: nn.ConvTranspose2d) -> Tensor:
    """Add to x, where it lies, the deconvolution `enlarge` of `coarse`, whose stride is its kernel's size."""
    height, factor = coarse.shape[2], enlarge.stride[0]
    step = max(1, PIECE_BYTES * height // (x.numel() * x.element_size()))
    for i in range(0, height, step):
        x[:, :, factor * i : factor * (i + step)] += enlarge(coarse[:, :, i : i + step])
    return x


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Apply `norm` to x, where it lies once the norm is frozen (`norms.fold_norms`)."""
    if not (isinstance(norm, FrozenBatchNorm) and norm.weight.dtype == x.dtype):
        return norm(x)
    scale, shift = norm.scale_shift()
    return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1), out=x)
