"""Normalisations in inference: batch norms folded into the convolutions before them, exact group norm on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv, FrozenBatchNorm, frozen


def group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    """`nn.GroupNorm.forward` with exact moments.

    PyTorch's kernel for channels-last maps on CPUs sums a whole group in one float32 and takes the variance from the
    mean of squares: it is off by up to 2e-4 of a map's spread, its kernel for the other layout by 1e-6.
    """
    if input.dtype not in (torch.float32, torch.float64):
        return nn.GroupNorm.forward(self, input)
    groups = (len(input), self.num_groups, input.shape[1] // self.num_groups)
    mean = input.mean((2, 3), keepdim=True)  # of each channel, then of each group
    variance = (input - mean).square_().mean((2, 3)).view(groups)
    mean = mean.view(groups)
    group_mean = mean.mean(2, keepdim=True)
    variance = (variance + (mean - group_mean).square()).mean(2, keepdim=True)
    scale = (variance + self.eps).rsqrt() * self.weight.view(groups[1:])
    shift = self.bias.view(groups[1:]) - group_mean * scale
    shape = (*input.shape[:2], 1, 1)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


@torch.no_grad()
def fold_norms(module: nn.Module) -> None:
    """Multiply batch norms into the weights of the convolutions before them, for inference, and make the others a
    scale and a shift. The module can be neither trained nor saved after.
    """
    for child in module.modules():
        if isinstance(child, Conv) and (norm := _fixed(child.norm)) is not None:
            _fold(child, norm)
            child.norm = None
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], _fixed(child[i + 1])
                if isinstance(conv, nn.Conv2d) and norm is not None:
                    _fold(conv, norm)
                    child[i + 1] = nn.Identity()
        for name, other in list(child.named_children()):
            if isinstance(other, nn.BatchNorm2d | nn.SyncBatchNorm):
                norm = frozen(other)
                norm.weight, norm.bias = norm.scale_shift()
                norm.running_mean.zero_()
                norm.running_var.fill_(1 - norm.eps)
                setattr(child, name, norm)


def _fixed(norm: nn.Module | None) -> FrozenBatchNorm | None:
    """Return the frozen batch norm, or None if `norm` is no batch norm."""
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return frozen(norm)
    return norm if isinstance(norm, FrozenBatchNorm) else None


def _fold(conv: Conv | nn.Conv2d, norm: FrozenBatchNorm) -> None:
    weight, bias = norm.folded(conv.weight, conv.bias)
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(bias, requires_grad=False)
