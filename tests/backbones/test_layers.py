"""Norms and deformable convolutions as layers."""

from __future__ import annotations

import pytest
import torch
import torchvision

from maskrcnn.backbones.layers import Conv, FrozenBatchNorm
from maskrcnn.engines.norms import fold_norms


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (4, 2, 1), (2, 1, 2)])
def test_a_deformable_convolution_with_a_frozen_norm(groups: int, stride: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = Conv(16, 8, 3, stride=stride, dilation=dilation, groups=groups, norm="frozen_bn")
    assert isinstance(conv.norm, FrozenBatchNorm)
    for buffer in conv.norm.buffers():
        buffer.uniform_(0.5, 1.5, generator=generator)
    x = torch.randn(2, 16, 11, 13, generator=generator)
    size = conv(x).shape[2:]
    offset = torch.randn(2, 18, *size, generator=generator) * 2
    expected = conv.norm(
        torchvision.ops.deform_conv2d(
            x,
            offset,
            conv.weight,
            None,
            stride=(stride, stride),
            padding=(dilation, dilation),
            dilation=(dilation, dilation),
        )
    )
    torch.testing.assert_close(conv(x, offset), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv(x, torch.zeros_like(offset)), conv(x), rtol=1e-4, atol=1e-5)
    before = conv(x, offset)
    fold_norms(torch.nn.ModuleList([conv]))
    assert conv.norm is None
    torch.testing.assert_close(conv(x, offset), before, rtol=1e-4, atol=1e-5)
