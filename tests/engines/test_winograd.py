"""Winograd's convolution against the direct one in float64."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.backbones.layers import Conv
from maskrcnn.engines import winograd
from maskrcnn.engines.prepare import for_training

# Maps of one strip and several, of full tiles and broken ones, wide, high and small.
SHAPES = [
    (1, 128, 61, 74),
    (1, 256, 40, 64),
    (3, 132, 50, 34),
    (70, 128, 14, 14),
    (9, 128, 5, 3),
    (1, 128, 1, 300),
    (1, 128, 150, 1),
]
pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the fast way needs MKL")


def _case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu()
    weight = torch.randn(136, shape[1], 3, 3, generator=generator) / (9 * shape[1]) ** 0.5
    last = torch.channels_last
    bias = torch.randn(136, generator=generator)
    return x.to(dtype, memory_format=last), weight.to(dtype, memory_format=last), bias.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "largest", "mean_square"), [(torch.float32, 2e-5, 1.5e-6), (torch.bfloat16, 0.06, 0.005)]
)
def test_equals_the_direct_convolution(
    shape: tuple[int, ...], dtype: torch.dtype, largest: float, mean_square: float
) -> None:
    x, weight, bias = _case(shape, dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    with torch.inference_mode():
        y = winograd.conv3x3(x, weight, bias)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    error = (y - expected) / expected.std()
    assert error.abs().max() < largest
    assert error.square().mean().sqrt() < mean_square


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 128, 61, 74), (1, 128, 64, 64)])
def test_bias_relu_and_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = _case(shape, dtype)
    with torch.no_grad():
        y = winograd.conv3x3(x, weight, bias)
        assert torch.equal(winograd.conv3x3(x, weight, bias, relu=True), y.relu())
        assert torch.equal(winograd.conv3x3(x.contiguous(), weight.contiguous(), bias), y)
        without = winograd.conv3x3(x, weight) + bias[:, None, None]
        torch.testing.assert_close(without, y, rtol=0, atol=0 if dtype == torch.float32 else 0.1)
        for (images, rows), strip in winograd.strips(x, weight, bias):
            assert torch.equal(strip.permute(0, 3, 1, 2), y[images, :, rows])


def test_the_kept_memory_holds_nothing_of_earlier_calls() -> None:
    """Larger and smaller maps by turns, in and out of inference mode, in two threads at once."""
    cases = [_case(shape) for shape in SHAPES]
    with torch.no_grad():
        expected = [winograd.conv3x3(*case) for case in cases]
    wrong: list[int] = []

    def work() -> None:
        with torch.inference_mode():
            for _ in range(3):
                for i, (case, y) in enumerate(zip(cases, expected, strict=True)):
                    if not torch.allclose(winograd.conv3x3(*case), y, rtol=0, atol=1e-5):
                        wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with torch.no_grad():
        assert torch.equal(winograd.conv3x3(*cases[0]), expected[0])


def fast(conv: Conv) -> Conv:
    for_training(conv)
    return conv


def test_where_it_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide 3x3 convolution over a large map, and nothing else; in bfloat16 in inference alone."""
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(winograd, "conv3x3", lambda x, *_: calls.append(tuple(x.shape)) or x)
    large, small = torch.zeros(1, 128, 50, 50), torch.zeros(1, 128, 12, 12)
    with torch.inference_mode():
        fast(Conv(128, 128, 3))(large)
        fast(Conv(256, 256, 3).bfloat16())(torch.zeros(1, 256, 80, 80, dtype=torch.bfloat16))
    fast(Conv(128, 128, 3))(large)  # in training, too
    assert calls == [(1, 128, 50, 50), (1, 256, 80, 80), (1, 128, 50, 50)]
    with torch.inference_mode():
        fast(Conv(128, 128, 3))(small)
        fast(Conv(128, 128, 1))(large)
        fast(Conv(128, 128, 3, stride=2))(large)
        fast(Conv(128, 128, 3, dilation=2))(large)
        fast(Conv(128, 128, 3, groups=2))(large)
        fast(Conv(128, 64, 3))(large)
        fast(Conv(128, 128, 3).double())(large.double())
        fast(Conv(128, 128, 3).bfloat16())(large.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            fast(Conv(128, 128, 3))(large)
    fast(Conv(256, 256, 3).bfloat16())(torch.zeros(1, 256, 80, 80, dtype=torch.bfloat16))  # has a gradient
    assert len(calls) == 3


def test_what_compiles_or_exports_has_the_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "conv3x3", lambda *_: pytest.fail("traced"))
    torch.export.export(fast(Conv(128, 128, 3)).eval(), (torch.zeros(1, 128, 50, 50),))


def test_a_norm_comes_before_the_relu() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 128, 50, 50, generator=generator)
    for norm in ("none", "frozen_bn", "gn"):
        conv = fast(Conv(128, 128, 3, norm=norm, relu=True)).eval()
        expected = Conv.forward(conv, x)
        with torch.no_grad():
            y = conv(x)
        assert y.min() == 0
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-3 if norm == "gn" else 5e-5)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_the_direct_convolutions(
    shape: tuple[int, ...], products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to the weights' gradient; of the map, the weights and the bias, alone and together."""
    monkeypatch.setattr(winograd, "gradients_are_products", lambda: products)
    inputs = [t.requires_grad_() for t in _case(shape)]
    flow = torch.randn(shape[0], 136, *shape[2:], generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(F.conv2d(*(t.double() for t in inputs), padding=1), inputs, flow.double())  # pyright: ignore[reportArgumentType, reportCallIssue]
    found = torch.autograd.grad(winograd.conv3x3(*inputs), inputs, flow)  # pyright: ignore[reportArgumentType]
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours - wanted).abs().max() < 1e-4 * wanted.std()
    (alone,) = torch.autograd.grad(winograd.conv3x3(*inputs), inputs[1], flow)  # pyright: ignore[reportArgumentType]
    assert torch.equal(alone, found[1])
    without = winograd.conv3x3(inputs[0], inputs[1])
    assert torch.equal(torch.autograd.grad(without, inputs[0], flow)[0], found[0])


def test_a_relu_has_its_gradient_too() -> None:
    x, weight, bias = (t.requires_grad_() for t in _case((1, 128, 20, 20)))
    found = torch.autograd.grad(winograd.conv3x3(x, weight, bias, relu=True).sum(), x)[0]
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).relu().sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.std().item())
