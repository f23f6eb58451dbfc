"""Heads whose classes have a sigmoid each: what they find, by hand, and what they learn from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from maskrcnn import presets
from maskrcnn.config import BoxHeadConfig, CascadeConfig, from_dict, to_dict
from maskrcnn.errors import UserError
from maskrcnn.models.box_head import BoxHead, SampledRoIs
from maskrcnn.models.build import build_model
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.boxes import clip_boxes, decode_boxes
from maskrcnn.structures import GroundTruth
from tests.models.tiny import proposals

SIZE = (64, 64)
CONFIG = BoxHeadConfig(
    fc_channels=16,
    scores="sigmoid",
    class_agnostic=True,
    score_threshold=0.0,
    nms_threshold=1.0,
    detections_per_image=1000,
)
BOXES = torch.tensor([[4.0, 4, 40, 30], [10, 20, 60, 50], [0, 0, 20, 20]])


@pytest.fixture
def features() -> RoIFeatures:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, 8, 64 // s, 64 // s, generator=generator) for s in (4, 8, 16, 32)]
    return RoIFeatures(maps, (4, 8, 16, 32))


def head(**settings: object) -> BoxHead:
    torch.manual_seed(0)
    made = BoxHead(8, 5, dataclasses.replace(CONFIG, **settings))  # pyright: ignore[reportArgumentType]
    made.class_predictor.weight.data *= 100
    return made


def cascade(rules: str) -> CascadeHead:
    torch.manual_seed(0)
    made = CascadeHead(8, 5, dataclasses.replace(CONFIG, cascade=CascadeConfig(rules=rules)))  # pyright: ignore[reportArgumentType]
    for stage in made.heads:
        stage.class_predictor.weight.data *= 100
    return made


@torch.no_grad()
def logits_of_stages(made: CascadeHead, features: RoIFeatures) -> Tensor:
    """Logits of each stage at the boxes of the one before, (stages, 3, 6)."""
    boxes, found = BOXES, []
    for stage in made.heads:
        logits, deltas = stage.predict_rois(features, RoIs.of([boxes]))
        found.append(logits)
        boxes = clip_boxes(decode_boxes(deltas[:, 0], boxes, stage.box_weights), SIZE)
    return torch.stack(found)


@torch.no_grad()
def test_scores_are_the_sigmoids_and_background_has_no_say(features: RoIFeatures) -> None:
    made = head()
    logits = made.predict_rois(features, RoIs.of([BOXES]))[0]
    found = of_image(made(features, proposals(BOXES), [SIZE]), 0)
    assert len(found.scores) == 3 * 5
    expected = 1 / (1 + (-logits[found.proposal_index, found.labels]).exp())
    torch.testing.assert_close(found.scores, expected)
    assert found.scores.sum() > 3 + 1e-3, "one distribution a RoI would add up to at most three"
    made.class_predictor.bias[5] = 50.0
    assert torch.equal(of_image(made(features, proposals(BOXES), [SIZE]), 0).scores, found.scores)


@torch.no_grad()
@pytest.mark.parametrize("rules", ["detectron2", "mmdetection"])
def test_a_cascade_has_the_mean_of_its_stages(features: RoIFeatures, rules: str) -> None:
    made = cascade(rules)
    logits = logits_of_stages(made, features)
    assert logits.std(0).max() > 0.1, "stages that say the same would show nothing"
    found = of_image(made(features, proposals(BOXES), [SIZE]), 0)
    mean = logits.sigmoid().mean(0) if rules == "detectron2" else logits.mean(0).sigmoid()
    torch.testing.assert_close(found.scores, mean[found.proposal_index, found.labels])


def sampled(labels: list[int]) -> SampledRoIs:
    none = torch.zeros(1, 3, dtype=torch.int64)
    return SampledRoIs(BOXES[None], torch.tensor([labels]), none, BOXES[None])


@pytest.mark.parametrize("federated", [0, 3])
def test_loss_is_divided_by_the_rois(features: RoIFeatures, federated: int) -> None:
    """Two RoIs, of class 1 and background; of three labels kept one is drawn, class 4: no other has an image."""
    made = head(federated_classes=federated, class_image_counts=(0, 9, 0, 0, 2))
    targets = [GroundTruth(BOXES[:1], torch.tensor([1]), seed=7)]
    losses, _ = made.loss(features, sampled([1, 5, -1]), targets, torch.tensor([SIZE]))
    with torch.no_grad():
        p = made.predict_rois(features, RoIs.of([BOXES[:2]]))[0].sigmoid()
    kept = [1, 4] if federated else range(5)
    total = sum(-(1 - p[i, k] if (i, k) != (0, 1) else p[i, k]).log() for i in range(2) for k in kept)
    torch.testing.assert_close(losses["loss_cls"].detach(), total / 2)


def test_stages_draw_for_themselves_and_a_batch_draws_alike(features: RoIFeatures) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, cascade=CascadeConfig(), federated_classes=5)
    made = CascadeHead(8, 400, config)
    for stage in made.heads:
        stage.class_predictor.weight.data.zero_()

    def drawn(seed: int) -> list[list[int]]:
        """Classes of each stage whose bias learns: of 400 those that are kept."""
        made.zero_grad()
        none = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), seed=seed)
        losses, _ = made.loss(features, sampled([400, 400, 400]), [none], torch.tensor([SIZE]))
        torch.stack(list(losses.values())).sum().backward()
        biases = [stage.class_predictor.bias.grad for stage in made.heads]
        return [b.nonzero()[:, 0].tolist() for b in biases if b is not None]

    first = drawn(1)
    assert [len(classes) for classes in first] == [4, 4, 4]  # and background
    assert first[0] != first[1] != first[2]
    assert drawn(1) == first != drawn(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"federated_classes": 50}, "model.box_head.federated_classes: expected 0 for scores by softmax"),
        ({"class_image_counts": (1, 2)}, "class_image_counts: expected one a class, 80, or none, got 2"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], message: str) -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    for name, value in settings.items():
        setattr(config.box_head, name, value)
    with pytest.raises(UserError, match=message):
        build_model(config)


@pytest.mark.parametrize(
    ("name", "value"), [("scores", "sigmoids"), ("federated_classes", -1), ("class_image_counts", [3, -1])]
)
def test_settings_out_of_bounds(name: str, value: object) -> None:
    content = to_dict(presets.get("mask_rcnn_R_50_FPN_1x"))
    content["model"]["box_head"][name] = value
    with pytest.raises(UserError, match=f"box_head.{name}"):
        from_dict(type(presets.get("mask_rcnn_R_50_FPN_1x")), content, "config")


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_lvis_presets_have_the_published_settings(size: str) -> None:
    """detectron2's projects/ViTDet/configs/LVIS: mask_rcnn_vitdet_{b,l,h}_100ep.py and the cascades over them."""
    for kind in ("", "cascade_"):
        config = presets.get(f"LVIS/{kind}mask_rcnn_vitdet_{size}_100ep")
        head, vit, names = config.model.box_head, config.model.backbone, config.model.class_names
        assert (config.model.num_classes, len(set(names)), names[0], names[1202]) == (
            1203,
            1203,
            "aerosol_can",
            "zucchini",
        )
        assert config.model.category_ids == tuple(range(1, 1204))
        assert (head.scores, head.federated_classes, head.score_threshold) == ("sigmoid", 50, 0.02)
        assert (head.detections_per_image, config.train.evaluate_max_detections) == (300, 300)
        assert head.class_agnostic == (head.cascade is not None) == bool(kind)
        assert (config.train.iterations, config.optim.milestones) == (156_250, (138_889, 150_463))
        assert (config.data.batch_size, config.data.repeat_threshold) == (64, 0.001)
        assert vit.drop_path == {"b": 0.1, "l": 0.4, "h": 0.4}[size]  # pyright: ignore[reportAttributeAccessIssue]
        assert config.optim.layer_decay == {"b": 0.7, "l": 0.8, "h": 0.9}[size]
        assert config.optim.lr == {"b": 2e-4, "l": 2e-4, "h": 1e-4}[size]
        assert config.optim.weight_decay_norm == (0.1 if size == "h" else 0.0)
