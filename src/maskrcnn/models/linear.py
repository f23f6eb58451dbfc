"""Fully connected layers, computed as a matrix product or as a 1x1 convolution, whichever is faster on the processor
at hand. Parameters are `nn.Linear`'s.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import processor


class Linear(nn.Linear):
    """`nn.Linear` of (R, C) rows; where convolutions are faster, a 1x1 convolution over one map of R places."""

    def forward(self, input: Tensor) -> Tensor:
        if not _convolves(input):
            return super().forward(input)
        x = input.t()[None, :, :, None]  # (1, C, R, 1), channels-last without a copy
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)[0, :, :, 0].t()


def first_fc(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """First fully connected layer of pooled RoIs and its ReLU: (R, C, P, P), laid out channels-last -> (R, D).

    kernel (D, C, P, P): the layer's weights as those of the convolution over a whole RoI that it is, laid out
    channels-last. Both forms read the RoIs as they lie.
    """
    if _convolves(x):
        return F.relu_(F.conv2d(x, kernel, bias)).flatten(1)
    return F.relu_(F.linear(x.permute(0, 2, 3, 1).flatten(1), kernel.permute(0, 2, 3, 1).flatten(1), bias))


def _convolves(x: Tensor) -> bool:
    return x.device.type == "cpu" and len(x) > 0 and processor.convolves_rows()
