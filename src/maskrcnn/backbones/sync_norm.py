"""Batch normalisation over all processes on CPUs, which PyTorch lacks.

`torch.nn.SyncBatchNorm` is for GPUs; with one process it is plain batch normalisation everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose mean and variance, in training, are over the maps (B, C, H, W) of every process."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = (0, 2, 3)
        count = _SumOverProcesses.apply(input.new_tensor([input.numel() / input.shape[1]]))
        mean = _SumOverProcesses.apply(input.sum(dims)) / count
        centred = input - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverProcesses(torch.autograd.Function):
    """Differentiable sum over processes. Every process's loss depends on every term, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def sync_on_cpu(model: nn.Module) -> None:
    """Replace `torch.nn.SyncBatchNorm` in a model that several processes train on CPUs. Parameters stay as they are."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SyncBatchNorm):
                norm = CPUSyncBatchNorm(child.num_features, child.eps, child.momentum)
                norm._parameters, norm._buffers = child._parameters, child._buffers
                setattr(parent, name, norm.train(child.training))
