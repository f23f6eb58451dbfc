"""Test-time augmentation: the views, and the merging of their detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn.config import TTAConfig
from maskrcnn.errors import UserError
from maskrcnn.models import tta as module
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.predictor import Predictor
from maskrcnn.models.tta import View
from maskrcnn.ops.boxes import box_iou
from maskrcnn.structures import Instances
from tests.models.tiny import tiny

PRESETS = ("mask_rcnn_R_50_FPN_1x", "cascade_mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x")
ONE_VIEW = TTAConfig(min_sizes=(96,), max_size=160, horizontal_flip=False)
IMAGE = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)


@torch.no_grad()
def finds_much(preset: str = PRESETS[0]) -> Predictor:
    """Random model whose last layers are scaled until they say something: it finds dozens of objects."""
    model = tiny(preset).eval()
    assert model.mask_head is not None
    batch = model.preprocess([torch.from_numpy(IMAGE).permute(2, 0, 1)])
    maps = model.backbone(batch.pixels)
    logits, deltas = model.rpn.head(maps)
    model.rpn.head.objectness.weight.div_(torch.cat(logits, 1).std())
    model.rpn.head.deltas.weight.div_(5 * torch.cat(deltas, 1).std())
    boxes, features = of_image(model.rpn(maps, batch.sizes), 0).boxes, model.roi_features(maps)
    heads = model.box_head.heads if isinstance(model.box_head, CascadeHead) else [model.box_head]
    for head in heads:
        logits, deltas = head.predict_rois(features, RoIs.of([boxes]))  # pyright: ignore[reportAttributeAccessIssue]
        scale = 3 / logits.std(0).mean()
        head.class_predictor.weight *= scale  # pyright: ignore[reportAttributeAccessIssue]
        head.class_predictor.bias.sub_(scale * logits.mean(0))  # no class is likelier than another  # pyright: ignore[reportAttributeAccessIssue]
        head.box_predictor.weight /= deltas.std()  # pyright: ignore[reportAttributeAccessIssue]
    masks = model.mask_head(features, RoIs.of([boxes]), torch.zeros(len(boxes), dtype=torch.int64))
    model.mask_head.predictor.weight *= 3 / masks.std()
    model.box_head.config.score_threshold = 0.2
    return model


def same(a: Instances, b: Instances, tolerance: float = 1e-3) -> None:
    assert len(a) == len(b) > 5
    assert a.labels.tolist() == b.labels.tolist()
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
    assert a.masks is not None
    assert b.masks is not None
    torch.testing.assert_close(a.masks.probs, b.masks.probs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_view_is_plain_prediction(preset: str) -> None:
    model = finds_much(preset)
    same(model.predict(IMAGE, tta=ONE_VIEW), model.predict(IMAGE))


def test_the_mirrored_picture_gives_mirrored_results() -> None:
    """With both views, a picture and its mirror image are seen alike."""
    model, both = finds_much(), TTAConfig(min_sizes=(96,), max_size=160)
    found = model.predict(IMAGE, tta=both)
    mirrored = model.predict(np.ascontiguousarray(IMAGE[:, ::-1]), tta=both)
    x0, y0, x1, y1 = mirrored.boxes.unbind(1)
    mirrored.boxes = torch.stack([90 - x1, y0, 90 - x0, y1], dim=1)
    assert mirrored.masks is not None
    mirrored.masks.probs = mirrored.masks.probs.flip(2)
    same(found, mirrored)


def test_views_add_what_they_find_and_merge_what_is_the_same() -> None:
    model = finds_much()
    model.box_head.config.detections_per_image = 1000
    sizes = (64, 96, 128)
    views = [TTAConfig(min_sizes=(s,), max_size=400, horizontal_flip=False) for s in sizes]
    alone = [model.predict(IMAGE, tta=view) for view in views]
    merged = model.predict(IMAGE, tta=TTAConfig(min_sizes=sizes, max_size=400, horizontal_flip=False))
    assert max(map(len, alone)) < len(merged) < sum(map(len, alone))
    every = torch.cat([a.boxes for a in alone])
    nearest, _ = torch.cdist(merged.boxes.double(), every.double()).min(1)
    assert nearest.max() < 1e-3, "a merged box is one of the views' boxes"
    for label in range(3):
        iou = box_iou(*[merged.boxes[merged.labels == label]] * 2).fill_diagonal_(0)
        assert iou.numel() == 0 or iou.max() <= 0.5
    assert merged.scores.tolist() == sorted(merged.scores.tolist(), reverse=True)


def test_masks_are_the_mean_over_the_views() -> None:
    """Of a box that one view finds, every view says what its mask is: here written down for two sizes."""
    model = finds_much()
    assert model.mask_head is not None
    sizes = TTAConfig(min_sizes=(64, 96), max_size=400, horizontal_flip=False)
    merged = model.predict(IMAGE, tta=sizes)
    probs = []
    with torch.inference_mode():
        for view, batch in module._views(model, IMAGE, sizes):
            features = model.roi_features(model.backbone(batch.pixels))
            scale = torch.tensor([view.size[1] / 90, view.size[0] / 61] * 2)
            probs.append(model.mask_head(features, RoIs.of([merged.boxes * scale]), merged.labels).sigmoid())
    assert merged.masks is not None
    assert (probs[0] - probs[1]).abs().max() > 0.1, "views that agree would show nothing"
    torch.testing.assert_close(merged.masks.probs, (probs[0] + probs[1]) / 2)


def test_features_that_are_not_kept_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = finds_much(), TTAConfig(min_sizes=(64, 96), max_size=160)
    kept = model.predict(IMAGE, tta=sizes)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    same(kept, model.predict(IMAGE, tta=sizes), 1e-6)


def test_a_view_and_back() -> None:
    view = View((60, 90), (120, 270), mirrored=True)
    boxes = torch.tensor([[0.0, 0.0, 30.0, 10.0]])
    assert view.to(boxes).tolist() == [[180.0, 0.0, 270.0, 20.0]]
    assert view.back(view.to(boxes)).tolist() == boxes.tolist()


def test_settings_hold_for_the_merged_detections() -> None:
    model, sizes = finds_much(), TTAConfig(min_sizes=(64, 96), max_size=160)
    assert model.config.mask_head is not None
    model.config.box_head.detections_per_image = 7
    model.config.box_head.class_agnostic_nms = True
    model.config.mask_head.threshold = 0.8
    found = model.predict(IMAGE, tta=sizes)
    assert len(found) == 7
    assert box_iou(found.boxes, found.boxes).fill_diagonal_(0).max() <= 0.5
    assert found.masks is not None
    assert found.masks.threshold == 0.8


@pytest.mark.parametrize("shape", [(1, 1), (17, 400)])
def test_odd_pictures_and_nothing_found(shape: tuple[int, int]) -> None:
    model = finds_much()
    image = np.zeros((*shape, 3), np.uint8)
    assert model.predict(image, tta=TTAConfig(min_sizes=(32, 48), max_size=80)).image_size == shape
    found = model.predict(image, tta=TTAConfig(min_sizes=(32, 48), max_size=80), score_threshold=1.0)
    assert len(found) == 0
    assert np.asarray(found.masks).shape == (0, *shape)


def test_key_points_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="expected a model without key points") as refused:
        tiny("keypoint_rcnn_R_50_FPN_1x").predict(IMAGE, tta=ONE_VIEW)
    assert "\n" not in str(refused.value)


def test_sizes_given_in_both_ways_are_refused() -> None:
    with pytest.raises(UserError, match="expected sizes in tta or as min_size and max_size"):
        tiny().predict(IMAGE, tta=ONE_VIEW, min_size=64)
