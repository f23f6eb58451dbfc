"""A temperature makes scores less sure or surer, and changes neither boxes nor their order."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.ops.temperature import tempered
from tests.models.tiny import pictures, tiny


def test_by_hand() -> None:
    scores = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    # The odds of 0.9 are 9, whose root is 3.
    assert tempered(scores, 2.0).tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert tempered(scores, 0.5).tolist() == pytest.approx([0, 1 / 82, 0.5, 81 / 82, 1])


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_1x", "cascade_mask_rcnn_R_50_FPN_3x"])
def test_detections_are_the_same_but_for_their_scores(name: str) -> None:
    model = tiny(name).eval()
    model.config.box_head.score_threshold = 0.0
    batch = model.preprocess(pictures((64, 96)))
    (before,) = model.detect(batch)
    model.config.box_head.temperature = 2.0
    (after,) = model.detect(batch)
    assert len(before) > 10
    assert torch.equal(after.boxes, before.boxes)
    assert torch.equal(after.labels, before.labels)
    assert torch.allclose(after.scores, tempered(before.scores, 2.0))


def test_the_score_threshold_is_of_what_is_reported() -> None:
    model = tiny().eval()
    model.config.box_head.score_threshold = 0.0
    batch = model.preprocess(pictures((64, 96)))
    model.config.box_head.temperature = 3.0
    (found,) = model.detect(batch)
    threshold = float(found.scores[len(found) // 2])
    (kept,) = model.detect(batch, score_threshold=threshold)
    assert 0 < len(kept) < len(found)
    assert (kept.scores > threshold).all()
