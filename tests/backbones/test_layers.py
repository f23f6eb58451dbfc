"""Norms and deformable convolutions as layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision

from maskrcnn.backbones.fpn import FPN
from maskrcnn.backbones.layers import Conv, FrozenBatchNorm, GroupNorm, fold_norms
from maskrcnn.config import FPNConfig


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_is_exact_in_inference(mean: float, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = GroupNorm(32, 64)
    for p in norm.parameters():
        torch.nn.init.uniform_(p, generator=generator)
    x = (torch.randn(2, 64, 96, 130, generator=generator) + mean).to(memory_format=layout)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double())
    with torch.inference_mode():
        torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=3e-6)
        assert norm(x[:0]).shape == (0, 64, 96, 130)
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=1e-3)  # PyTorch's own, in training


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
            x, offset, conv.weight, None, stride=stride, padding=dilation, dilation=dilation
        )
    )
    torch.testing.assert_close(conv(x, offset), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv(x, torch.zeros_like(offset)), conv(x), rtol=1e-4, atol=1e-5)
    before = conv(x, offset)
    fold_norms(torch.nn.ModuleList([conv]))
    assert conv.norm is None
    torch.testing.assert_close(conv(x, offset), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_is_added_to_a_map(dtype: torch.dtype, kernel: int) -> None:
    """In training to a map of its own, in inference where the other map lies."""
    generator = torch.Generator().manual_seed(0)
    conv = Conv(16, 32, kernel).to(dtype)
    x = torch.randn(2, 16, 9, 7, generator=generator).to(dtype, memory_format=torch.channels_last)
    other = torch.randn(2, 32, 9, 7, generator=generator).to(dtype, memory_format=torch.channels_last)
    before = other.clone()
    expected = F.relu(conv(x) + other)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-12}[dtype]
    trained = conv.add_to(x, other)
    assert trained.requires_grad
    torch.testing.assert_close(trained, expected, rtol=0, atol=tolerance)
    assert torch.equal(other, before)
    with torch.inference_mode():
        torch.testing.assert_close(conv.add_to(x, other), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(
            conv.add_to(x.contiguous(), before.contiguous()), expected, rtol=0, atol=tolerance
        )
        assert conv.add_to(x[:0], other[:0]).shape == (0, 32, 9, 7)


@pytest.mark.parametrize("size", [(10, 12), (9, 12), (9, 11)])
def test_the_pyramid_is_the_same_in_training_and_inference(size: tuple[int, int]) -> None:
    """Whether a map has twice the coarser one's size or one less."""
    fpn = FPN([8, 8], FPNConfig(out_channels=8))
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 8, *size, generator=generator), torch.randn(2, 8, 5, 6, generator=generator)]
    expected = fpn(features)
    with torch.inference_mode():
        for level, wanted in zip(fpn(features), expected, strict=True):
            torch.testing.assert_close(level, wanted, rtol=0, atol=1e-6)
