"""The residual sum inside a convolution."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.backbones.resnet import BottleneckBlock
from maskrcnn.engines.convolutions import bottleneck
from maskrcnn.engines.norms import fold_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [16, 32], ids=["with a shortcut of its own", "without"])
def test_a_convolution_is_added_to_a_map(dtype: torch.dtype, channels: int) -> None:
    """Whatever the layout, and for no picture at all."""
    generator = torch.Generator().manual_seed(0)
    block = BottleneckBlock(channels, 8, 32, 1, norm="frozen_bn")
    fold_norms(block)
    block = block.to(dtype)
    x = torch.randn(2, channels, 9, 7, generator=generator).to(dtype)
    expected = block(x).detach()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float64: 1e-12}[dtype] * float(
        expected.abs().max()
    )
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            found = bottleneck(block, x.clone().to(memory_format=layout))
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        assert bottleneck(block, x[:0]).shape == (0, 32, 9, 7)
