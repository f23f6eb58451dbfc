"""torchvision's resize is PyTorch's interpolation, computed without PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskrcnn.images.resize import resize_image


@pytest.mark.parametrize("size", [(37, 80), (61, 50), (9, 200), (1, 1)])
def test_torchvisions_resize_is_pytorchs_interpolation(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    found = resize_image(image, size, "torchvision")
    assert found.dtype == np.float32
    # Processors round a place by one step more or less, which is a difference of some 1e-5 of a level.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-3)
