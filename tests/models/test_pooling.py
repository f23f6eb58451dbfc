"""Pooling of RoIs through C4's shared stage, in pieces and all at once."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.engines import heads
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from tests.models.tiny import tiny


def boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * 60
    return torch.cat([corners.amin(1), corners.amax(1) + 2], dim=1)


@pytest.fixture
def features() -> RoIFeatures:
    model = tiny("mask_rcnn_R_50_C4_1x").eval()
    maps = torch.rand(2, model.backbone.out_channels, 5, 6, generator=torch.Generator().manual_seed(0))
    return RoIFeatures([maps], (16,), model.res5)


@pytest.mark.parametrize("counts", [(5, 7), (0, 3), (0, 0), (4, 4)])
def test_pieces_are_the_whole(
    features: RoIFeatures, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rois = RoIs.of([boxes(n) for n in counts])
    monkeypatch.setattr(heads, "C4_CHUNK", 4)
    with torch.no_grad():
        found = list(heads.chunks(features, rois, 7))
    assert len(found) == max(1, -(-sum(counts) // 4))
    expected = features.pool(rois, 7)
    assert expected.shape == (sum(counts), 256, 7, 7)
    torch.testing.assert_close(torch.cat(found), expected)


def test_in_training_some_of_the_same_rois_are_not_computed_again(features: RoIFeatures) -> None:
    calls = []
    assert features.res5 is not None
    features.res5.register_forward_hook(lambda *_: calls.append(1))
    rois = RoIs.of([boxes(5), boxes(7)])
    everything = features.pool(rois, 7)
    some = features.pool(rois._replace(rows=torch.tensor([0, 1, 7, 8, 9])), 7)
    assert len(calls) == 1
    torch.testing.assert_close(some, torch.cat([everything[:2], everything[5:8]]), rtol=0, atol=0)
    others = features.pool(RoIs.of([boxes(5)[1:2], boxes(7)[:3]]), 7)
    assert len(calls) == 2
    torch.testing.assert_close(others, torch.cat([everything[1:2], everything[5:8]]))
    some.sum().backward()
    assert all(p.grad is not None for p in features.res5.parameters())


def test_the_mask_of_a_c4_model_has_14_cells_a_side() -> None:
    model = tiny("mask_rcnn_R_50_C4_1x").eval()
    with torch.inference_mode():
        features = model.roi_features(model.backbone(torch.zeros(1, 3, 64, 96)))
        logits = model.mask_head(features, RoIs.of([boxes(3)]), torch.zeros(3, dtype=torch.int64))  # pyright: ignore[reportOptionalCall]
    assert logits.shape == (3, 14, 14)
