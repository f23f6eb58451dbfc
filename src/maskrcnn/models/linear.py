"""Fully connected layers as the convolutions that they are: faster on CPUs where float32 matrix products take a
slower road than convolutions (`docs/log.md`). Parameters are those of `nn.Linear`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` of (R, C) rows, computed on a CPU as a 1x1 convolution over one map of R places."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or len(input) == 0:
            return super().forward(input)
        x = input.t()[None, :, :, None]  # (1, C, R, 1), channels-last without a copy
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)[0, :, :, 0].t()
