"""Batch norms' running statistics measured anew, over batches that all see the same weights.

In training they trail the weights: each batch moves them a tenth. detectron2 renews them before it evaluates models
whose batch norms learn (`PreciseBN`, from fvcore's `update_bn_stats`; Wu and Johnson 2021, arXiv 2105.07576).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def renew_statistics(model: nn.Module, forward: Callable[[], object], num_batches: int) -> None:
    """Set each batch norm's running mean and variance to those over `num_batches` calls of `forward`.

    forward: passes the model's next batch through it. Variances are of all those batches together: the mean of
    theirs, and how much their means vary. Norms of `model` that are not in training are left alone, and so is one
    that a batch did not reach.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if not norms:
        return
    sums = {norm: _Moments(norm) for norm in norms}
    with _last_batch_only(norms):
        for _ in range(num_batches):
            forward()
            for moments in sums.values():
                moments.add()
    for moments in sums.values():
        moments.store()


class _Moments:
    """Moments of one norm's input over the batches so far; a batch is one more call of the norm."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.count = norm, 0
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        self.before = int(norm.num_batches_tracked)
        self.old = [b.clone() for b in (norm.running_mean, norm.running_var)]  # type: ignore[union-attr]
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.square = self.mean.clone()  # mean of the squares of the batches' means
        self.variance = self.mean.clone()

    def add(self) -> None:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        if int(norm.num_batches_tracked) == self.before + self.count:
            return
        self.count += 1
        mean = norm.running_mean.double()
        self.mean.lerp_(mean, 1 / self.count)
        self.square.lerp_(mean.square(), 1 / self.count)
        self.variance.lerp_(norm.running_var.double(), 1 / self.count)

    def store(self) -> None:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(self.before)
        if not self.count:
            norm.running_mean.copy_(self.old[0])
            norm.running_var.copy_(self.old[1])
            return
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.variance + self.square - self.mean.square())


@contextmanager
def _last_batch_only(norms: list[_BatchNorm]) -> Iterator[None]:
    """Have running statistics be those of the last batch alone within the block."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
