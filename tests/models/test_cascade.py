"""Cascade R-CNN's stages: their inputs, their targets and their results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn import presets, zoo
from maskrcnn.config import CascadeConfig
from maskrcnn.errors import UserError
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.build import build_model
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.boxes import clip_boxes, decode_boxes
from maskrcnn.structures import GroundTruth
from maskrcnn.weights.load import load_weights, read_weights
from maskrcnn.weights.write import write_weights
from tests.models.tiny import proposals, tiny

NAME = "cascade_mask_rcnn_R_50_FPN_3x"
SIZE = (96, 128)


@pytest.fixture
def model() -> MaskRCNN:
    """Cascade whose box predictors move boxes by many pixels."""
    model = tiny(NAME)
    generator = torch.Generator().manual_seed(0)
    for head in cascade(model).heads:
        head.box_predictor.bias.data = torch.randn(4, generator=generator) * 2
        head.class_predictor.weight.data *= 50
    return model


@pytest.fixture
def features() -> RoIFeatures:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, 16, SIZE[0] // s, SIZE[1] // s, generator=generator) for s in (4, 8, 16, 32)]
    return RoIFeatures([m.requires_grad_() for m in maps], (4, 8, 16, 32))


@pytest.fixture
def boxes() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(20, 2, generator=generator) * 60
    return torch.cat([corners, corners + 10 + torch.rand(20, 2, generator=generator) * 30], dim=1)


def cascade(model: MaskRCNN) -> CascadeHead:
    assert isinstance(model.box_head, CascadeHead)
    return model.box_head


@torch.no_grad()
def by_hand(head: CascadeHead, features: RoIFeatures, boxes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Run the stages one by one: the probabilities of each, and the boxes before the first and after each."""
    probs, places = [], [boxes]
    for stage in head.heads:
        logits, deltas = stage.predict_rois(features, RoIs.of([places[-1]]))
        probs.append(logits.softmax(1))
        places.append(clip_boxes(decode_boxes(deltas[:, 0], places[-1], stage.box_weights), SIZE))
    return probs, places


def test_each_stage_has_its_own_weights_and_overlap(model: MaskRCNN) -> None:
    heads = cascade(model).heads
    assert [h.iou_positive for h in heads] == [0.5, 0.6, 0.7]
    assert [h.box_weights[0] for h in heads] == [10, 20, 30]
    assert [len(h.box_predictor.weight) for h in heads] == [4, 4, 4]
    assert len({id(p) for h in heads for p in h.parameters()}) == sum(
        1 for h in heads for _ in h.parameters()
    )


def test_scores_are_the_stages_mean_and_boxes_the_lasts(
    model: MaskRCNN, features: RoIFeatures, boxes: Tensor
) -> None:
    head = cascade(model)
    probs, places = by_hand(head, features, boxes)
    head.config.detections_per_image, head.config.nms_threshold = 1000, 1.0
    with torch.no_grad():
        found = of_image(head(features, proposals(boxes), [SIZE], 0.0), 0)
    mean = (probs[0] + probs[1] + probs[2]) / 3
    assert len(found.boxes) == len(boxes) * 3
    torch.testing.assert_close(found.scores, mean[found.proposal_index, found.labels])
    torch.testing.assert_close(found.boxes, places[3][found.proposal_index])
    assert (places[3] - boxes).abs().max() > 5, "a case in which boxes stay would show nothing"


def test_later_stages_learn_all_rois_where_they_have_moved_to(
    model: MaskRCNN, features: RoIFeatures, boxes: Tensor
) -> None:
    """The last stage's losses, written down by hand."""
    head = cascade(model)
    probs, places = by_hand(head, features, boxes)
    # An object at a place that a box arrives at exactly, and one that no box comes near.
    target = GroundTruth(torch.stack([places[2][3], torch.tensor([1.0, 90, 4, 95])]), torch.tensor([1, 2]))
    background, none = torch.full((1, 20), 3), torch.zeros(1, 20, dtype=torch.int64)
    sampled = SampledRoIs(boxes[None], background, none, boxes[None])
    losses, _ = head.loss(features, sampled, [target], torch.tensor([SIZE]))
    assert list(losses) == [f"loss_{n}_stage{k}" for k in range(3) for n in ("cls", "box_reg")]
    labels = torch.full((20,), 3)
    labels[3] = 1
    rematched = head.rematch(2, places[2][None], torch.ones(1, 20) > 0, [target])
    assert rematched.labels[0].tolist() == labels.tolist()
    assert losses["loss_cls_stage2"].item() == pytest.approx(
        F.nll_loss(probs[2].log(), labels).item(), rel=1e-5
    )
    # Where the box is the object already, the wanted deltas are zero: the loss is the sum of those predicted.
    with torch.no_grad():
        deltas = head.heads[2].predict_rois(features, RoIs.of([places[2]]))[1]
    assert losses["loss_box_reg_stage2"].item() == pytest.approx(deltas[3].abs().sum().item() / 20, rel=1e-4)


def test_overlap_that_is_enough_for_one_stage_is_not_for_the_next(model: MaskRCNN) -> None:
    head = cascade(model)
    target = GroundTruth(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([2]))
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 5.5], [0.0, 0.0, 10.0, 6.5], [0.0, 0.0, 10.0, 7.0], [20, 20, 30, 30]]
    )
    there = torch.ones(1, 4) > 0
    labels = [head.rematch(k, boxes[None], there, [target]).labels[0].tolist() for k in range(3)]
    assert labels == [[2, 2, 2, 3], [3, 2, 2, 3], [3, 3, 2, 3]]


def test_empty_boxes_are_not_learnt_from(model: MaskRCNN) -> None:
    head = cascade(model)
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 9.0, 9.0], [float("nan")] * 4])
    target = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    rois = of_image(head.rematch(1, boxes[None], torch.ones(1, 3) > 0, [target]), 0)
    assert rois.boxes.tolist() == [[0.0, 0.0, 9.0, 9.0]]
    assert rois.labels.tolist() == [3]


def test_no_rois_at_all(model: MaskRCNN, features: RoIFeatures) -> None:
    head = cascade(model)
    none = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    nothing = Proposals(torch.zeros(1, 5, 4), torch.zeros(1, 5), torch.zeros(1, 5) > 0)
    sampled = head.sample(nothing, [none])
    losses, _ = head.loss(features, sampled, [none], torch.tensor([SIZE]))
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == 0
    total.backward()
    assert all(p.grad is not None for p in head.parameters())
    found = head(features, nothing, torch.tensor([SIZE]))
    assert not found.valid.any()


def test_the_maps_get_a_third_of_each_stages_gradient(
    model: MaskRCNN, features: RoIFeatures, boxes: Tensor
) -> None:
    head = cascade(model)
    target = GroundTruth(boxes[:2] + 1, torch.tensor([0, 1]))
    sampled = head.sample(proposals(boxes), [target])
    first = {
        k: v
        for k, v in head.loss(features, sampled, [target], torch.tensor([SIZE]))[0].items()
        if "stage0" in k
    }
    alone, _ = head.heads[0].loss(features, sampled, [target], torch.tensor([SIZE]))
    assert [v.item() for v in first.values()] == [v.item() for v in alone.values()]
    wanted = [features.maps[0], head.heads[0].fcs[1].weight]
    in_cascade = torch.autograd.grad(torch.stack(list(first.values())).sum(), wanted)
    by_itself = torch.autograd.grad(torch.stack(list(alone.values())).sum(), wanted)
    torch.testing.assert_close(in_cascade[0], by_itself[0] / 3)
    torch.testing.assert_close(in_cascade[1], by_itself[1])  # its own weights get all of it


def test_boxes_carry_no_gradient_from_stage_to_stage(
    model: MaskRCNN, features: RoIFeatures, boxes: Tensor
) -> None:
    head = cascade(model)
    target = GroundTruth(boxes[:2] + 1, torch.tensor([0, 1]))
    sampled = head.sample(proposals(boxes), [target])
    losses, _ = head.loss(features, sampled, [target], torch.tensor([SIZE]))
    last = losses["loss_cls_stage2"] + losses["loss_box_reg_stage2"]
    last.backward()
    assert all(p.grad is None for k in (0, 1) for p in head.heads[k].parameters())
    assert all(p.grad is not None for p in head.heads[2].parameters())


def test_convolutions_and_group_norm_in_every_stage() -> None:
    model = tiny("cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv")
    for head in cascade(model).heads:
        assert len(head.convs) == 4
        assert len(head.fcs) == 1
        assert all(isinstance(conv.norm, torch.nn.GroupNorm) for conv in head.convs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_agnostic": False}, "model.box_head.class_agnostic: expected true for detectron2's cascade"),
        (
            {"cascade": CascadeConfig(iou_positive=(0.5, 0.6))},
            "expected iou_positive, box_weights and loss_weights for the same stages, got 2, 3 and 3",
        ),
    ],
)
def test_settings_that_contradict_are_refused(change: dict[str, object], message: str) -> None:
    config = presets.get(NAME, tiny=True).model
    for name, value in change.items():
        setattr(config.box_head, name, value)
    with pytest.raises(UserError, match=message):
        build_model(config)


def test_other_classes_get_new_classifiers_and_keep_the_boxes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained, path = zoo.build(NAME, num_classes=5, tiny=True), tmp_path / "five.safetensors"
    write_weights(path, trained.state_dict(), trained.config)
    assert read_weights(path).num_classes == 5
    model = tiny(NAME)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    (note,) = load_weights(model, path, new_head=True)
    assert "has 5 classes" in note
    for name, value in model.state_dict().items():
        is_new = ".class_predictor." in name or name.startswith("mask_head.predictor.")
        assert torch.equal(value, fresh[name] if is_new else trained.state_dict()[name]), name
    assert zoo.restore(path).config.num_classes == 5
