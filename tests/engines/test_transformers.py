"""What transformers do where their tensors lie, some rows or lines at a time, is what they do all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones import internimage
from maskrcnn.engines import transformers


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "PIECE_BYTES", 256)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 37, 8), (1, 3, 5, 8), (0, 4, 8), (1, 1, 8)])
@torch.inference_mode()
def test_an_mlp(shape: tuple[int, ...]) -> None:
    mlp = internimage.MLP(8, 32)
    same(transformers.mlp(mlp, randn(*shape)), mlp(randn(*shape)))


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 3)])
@torch.inference_mode()
def test_an_enlarged_map_is_added(factor: int, size: tuple[int, int]) -> None:
    h, w = size
    x, coarse = randn(2, 4, factor * h, factor * w), randn(2, 4, h, w, seed=1)
    expected = x + F.interpolate(coarse, scale_factor=factor, mode="bilinear")
    same(transformers.add_resized(x, coarse, factor), expected)


@torch.inference_mode()
def test_a_deconvolution_is_added() -> None:
    x, coarse, deconv = randn(2, 4, 14, 10), randn(2, 3, 7, 5, seed=1), nn.ConvTranspose2d(3, 4, 2, stride=2)
    expected = x + deconv(coarse)
    same(transformers.add_enlarged(x, coarse, deconv), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_softmax_over_few_numbers(dtype: torch.dtype) -> None:
    x = randn(3, 5, 9) * 30
    x[0, 0] = 1e4  # e to that power is no number
    x[0, 1, :8] = -torch.inf
    found = transformers.softmax(x.to(dtype))
    torch.testing.assert_close(found, x.to(dtype).softmax(-1), rtol=1e-6, atol=1e-7)
