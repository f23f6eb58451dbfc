"""Mask heads of other resolutions: each more transposed convolution doubles the mask."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.config import MaskHeadConfig
from maskrcnn.engines.prepare import prepare
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_head import MaskHead
from tests.models.tiny import tiny


@pytest.mark.parametrize(
    ("pool_size", "num_deconvs", "size"), [(14, 1, 28), (28, 1, 56), (14, 2, 56), (7, 3, 56)]
)
def test_a_mask_has_as_many_cells_as_its_settings_say(pool_size: int, num_deconvs: int, size: int) -> None:
    config = MaskHeadConfig(pool_size=pool_size, num_deconvs=num_deconvs, num_convs=1, conv_channels=8)
    head = MaskHead(4, 3, config)
    labels = torch.tensor([0, 2])
    logits = head.predict_pooled(torch.rand(2, 4, pool_size, pool_size), labels)
    assert logits.shape == (2, size, size)
    assert config.mask_size == size


def test_the_form_for_cpus_is_the_same() -> None:
    config = tiny().config
    assert config.mask_head is not None
    config.mask_head.num_deconvs = 2
    config.box_head.score_threshold = 0.0
    torch.manual_seed(0)
    model = build_model(config).eval()
    picture = torch.randint(0, 255, (90, 120, 3), dtype=torch.uint8).numpy()
    plain = model.predict(picture)
    assert plain.masks is not None
    assert plain.masks.probs.shape[1:] == (56, 56)
    fast = prepare(model, "fp32", "cpu").predict(picture)
    assert fast.masks is not None
    torch.testing.assert_close(fast.masks.probs, plain.masks.probs, atol=1e-5, rtol=1e-4)
