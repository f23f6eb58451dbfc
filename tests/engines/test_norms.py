"""Normalisations in inference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskrcnn.engines.norms import fold_norms, group_norm
from maskrcnn.engines.transformers import batch_norm


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_is_exact_in_inference(mean: float, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(32, 64)
    for p in norm.parameters():
        torch.nn.init.uniform_(p, generator=generator)
    x = (torch.randn(2, 64, 96, 130, generator=generator) + mean).to(memory_format=layout)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double())
    with torch.inference_mode():
        torch.testing.assert_close(group_norm(norm, x).double(), expected, rtol=0, atol=3e-6)
        assert group_norm(norm, x[:0]).shape == (0, 64, 96, 130)
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=1e-3)  # PyTorch's own


def test_a_batch_norm_of_its_own() -> None:
    norm = nn.BatchNorm2d(6, eps=1e-3)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    parent = nn.ModuleDict({"norm": norm.eval()})
    expected = norm(x).detach()
    fold_norms(parent)
    with torch.inference_mode():
        torch.testing.assert_close(batch_norm(x.clone(), parent["norm"]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(parent["norm"](x), expected, rtol=0, atol=1e-6)
