"""Norms and deformable convolutions as layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision

from maskrcnn.backbones import layers
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


class TestInference:
    """Claims that layers which overwrite their inputs in inference give the results of training."""

    @pytest.fixture
    def tokens(self) -> torch.Tensor:
        return torch.randn(2, 37, 8, generator=torch.Generator().manual_seed(0))

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers, "PIECE_BYTES", 256)

    @staticmethod
    def check(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, tolerance: float = 1e-6) -> None:
        expected = function(*inputs).detach()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(
                    function(*(x.clone() for x in inputs)), expected, rtol=0, atol=tolerance
                )
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(
                function(*(x.clone() for x in inputs)).float(), expected, rtol=0, atol=0.1
            )

    def test_gelu(self, tokens: torch.Tensor) -> None:
        self.check(layers.gelu, tokens)
        with torch.inference_mode():
            assert layers.gelu(tokens) is tokens

    def test_residual(self, tokens: torch.Tensor) -> None:
        self.check(layers.residual, tokens, tokens.flip(0))
        self.check(layers.residual, tokens, tokens.flip(0), torch.linspace(0, 1, 8))

    def test_residual_of_two_types_is_of_the_wider(self, tokens: torch.Tensor) -> None:
        with torch.inference_mode():
            assert layers.residual(tokens, tokens.bfloat16()).dtype == torch.float32

    @pytest.mark.parametrize("shape", [(2, 37, 8), (1, 3, 5, 8), (0, 4, 8), (1, 1, 8)])
    def test_mlp(self, shape: tuple[int, ...]) -> None:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        fc1, fc2 = torch.nn.Linear(8, 32), torch.nn.Linear(32, 5)
        self.check(lambda x: layers.mlp(x, fc1, fc2), x)

    def test_add_linear(self, tokens: torch.Tensor) -> None:
        linear = torch.nn.Linear(4, 8)
        self.check(lambda x, y: layers.add_linear(x, y, linear, 0.5, False), tokens, tokens[..., :4])
        left_out = layers.add_linear(tokens, tokens[..., :4], linear, 1.0, True)
        torch.testing.assert_close(left_out, tokens)

    @pytest.mark.parametrize("factor", [2, 4])
    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3)])
    def test_add_resized(self, factor: int, size: tuple[int, int]) -> None:
        h, w = size
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 4, factor * h, factor * w, generator=generator)
        coarse = torch.randn(2, 4, h, w, generator=generator)
        self.check(lambda x, c: layers.add_resized(x, c, factor), x, coarse)

    def test_add_enlarged(self) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(2, 3, 7, 5, generator=generator)
        x = torch.randn(2, 4, 14, 10, generator=generator)
        deconv = torch.nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.check(lambda x, c: layers.add_enlarged(x, c, deconv), x, coarse)
        with torch.inference_mode():
            expected = deconv(coarse) + x
            torch.testing.assert_close(layers.add_enlarged(x, coarse, deconv), expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_softmax(self, dtype: torch.dtype) -> None:
        x = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(0)) * 30
        x[0, 0] = 1e4  # e to that power is no number
        x[0, 1, :8] = -torch.inf
        with torch.inference_mode():
            found = layers.softmax(x.to(dtype))
        torch.testing.assert_close(found, x.to(dtype).softmax(-1), rtol=1e-6, atol=1e-7)

    def test_a_batch_norm_of_its_own(self) -> None:
        norm = torch.nn.BatchNorm2d(6, eps=1e-3)
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            assert tensor is not None
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
        x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
        parent = torch.nn.ModuleDict({"norm": norm.eval()})
        expected = norm(x).detach()
        fold_norms(parent)
        self.check(lambda x: layers.batch_norm(x, parent["norm"]), x)
        torch.testing.assert_close(parent["norm"](x), expected, rtol=0, atol=1e-6)
