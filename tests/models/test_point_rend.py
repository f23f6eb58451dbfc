"""PointRend: masks that are rendered point by point, on any model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn import presets
from maskrcnn.config import MaskHeadConfig, PointRendConfig, override
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.models.places import RoIs
from maskrcnn.models.point_rend import PointRend, features_at, grid, random_points
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.predictor import Predictor
from tests.models.tiny import objects, pictures, tiny

NAME = "pointrend_rcnn_R_50_FPN_1x_coco"
BOXES = [torch.tensor([[4.0, 8, 40, 30], [-6, 2, 20, 70]]), torch.tensor([[10.0, 10, 11, 12]])]


def head(**changes: object) -> tuple[PointRend, RoIFeatures]:
    """Small head of 3 classes, and maps (2, 6, 16, 20) of stride 4 to read from."""
    torch.manual_seed(0)
    rendered = PointRendConfig(
        fc_channels=16, start_size=7, num_subdivisions=2, num_points=60, num_samples=20
    )
    for name, value in changes.items():
        setattr(rendered, name, value)
    made = PointRend(6, 3, MaskHeadConfig(point_rend=rendered, conv_channels=8))
    torch.nn.init.normal_(made.point_head.predictor.weight)
    torch.nn.init.normal_(made.coarse_head.predictor.weight)
    return made, RoIFeatures([torch.randn(2, 6, 16, 20)], (4,))


@torch.no_grad()
def test_a_mask_whose_every_point_is_computed_is_what_the_point_head_says_there() -> None:
    made, features = head(num_points=10_000)
    rois, labels = RoIs.of(BOXES), torch.tensor([2, 0, 1])
    everywhere = grid(28, rois.boxes).expand(3, -1, -1)
    expected = made.at(everywhere, features, rois, made.coarse(features, rois), labels)
    torch.testing.assert_close(made(features, rois, labels), expected.view(3, 28, 28))


@torch.no_grad()
def test_only_the_least_certain_points_are_computed_anew() -> None:
    made, features = head(num_subdivisions=1)
    rois, labels = RoIs.of(BOXES), torch.tensor([2, 0, 1])
    coarse = made.coarse(features, rois)
    start = made.at(grid(7, rois.boxes).expand(3, -1, -1), features, rois, coarse, labels).view(3, 1, 7, 7)
    smooth = torch.nn.functional.interpolate(start, scale_factor=2, mode="bilinear").flatten(1)
    every = made.at(grid(14, rois.boxes).expand(3, -1, -1), features, rois, coarse, labels)
    unsure = smooth.abs() <= smooth.abs().sort(dim=1).values[:, 59:60]
    assert unsure.sum(1).tolist() == [60] * 3
    expected = torch.where(unsure, every, smooth)
    torch.testing.assert_close(made(features, rois, labels).flatten(1), expected)
    assert not torch.allclose(expected, smooth, atol=0.1)


def test_features_are_read_where_the_point_lies_in_its_own_image() -> None:
    x = (torch.arange(20.0) + 0.5) * 4  # pixels of the cells' centres, stride 4
    y = (torch.arange(16.0) + 0.5) * 4
    one = torch.stack([x.expand(16, 20), y[:, None].expand(16, 20)])
    features = RoIFeatures([torch.stack([one, one + 100])], (4,))
    points = torch.tensor([[0.25, 0.5], [0.5, 0.75]]).expand(3, 2, 2)
    boxes = [torch.tensor([[4.0, 8, 40, 30], [10, 12, 20, 60]]), torch.tensor([[10.0, 10, 14, 18]])]
    found = features_at(points, features, RoIs.of(boxes))  # (R, C, P)
    expected = [[[13, 22], [19, 24.5]], [[12.5, 15], [36, 48]], [[111, 112], [114, 116]]]
    torch.testing.assert_close(found, torch.tensor(expected))
    outside = RoIs.of([torch.tensor([[-90.0, 0, -50, 20]]), torch.zeros(0, 4)])
    assert not features_at(points[:1], features, outside).any()


def test_the_points_of_the_loss_are_mostly_those_near_the_edge() -> None:
    made, _ = head(num_samples=40)
    targets = [objects([], (64, 80), seed=i) for i in (3, 4)]
    side = torch.linspace(-3, 3, 7).expand(3, 1, 7, 7)  # the mask's edge is the line x = 0.5
    points = made.choose_points(side, RoIs.of(BOXES), targets)
    assert points.shape == (3, 40, 2)
    assert (points >= 0).all()
    assert (points < 1).all()
    from_edge = (points[..., 0] - 0.5).abs()
    assert (from_edge[:, :30] < 0.25).all()  # 30 of 120 that were tried; a quarter of them is within 0.125
    assert (from_edge[:, 30:] > 0.25).any(1).all()


def test_random_points_are_the_image_s_own() -> None:
    rois, alone = RoIs.of(BOXES), RoIs(RoIs.of(BOXES).boxes[1:], torch.tensor([0]))
    targets = [objects([], (64, 80), seed=i) for i in (3, 4)]
    both = random_points((50, 20), rois, targets)
    one = random_points((50, 20), alone, targets[1:])
    assert [p.shape for p in both] == [(3, 50, 2), (3, 20, 2)]
    assert all(torch.equal(a[2:], b) for a, b in zip(both, one, strict=True))
    assert not torch.equal(both[0][0], both[0][1])
    many = random_points((40_000,), alone, targets[:1])[0][0]
    counts = torch.histogramdd(many, [4, 4], range=[0.0, 1, 0, 1]).hist
    torch.testing.assert_close(counts / 2500, torch.ones(4, 4), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_R_50_C4_1x",
        "cascade_mask_rcnn_R_50_FPN_1x",
        "mask_rcnn_mobilenet_v2_FPN",
        "mask_rcnn_vitdet_b_100ep",
    ],
)
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_any_model_takes_it(name: str, class_agnostic: bool) -> None:
    model = with_point_rend(name, class_agnostic).train()
    size = (61, 90)
    batch = model.preprocess(pictures(size))
    losses = model(batch, [objects([[10.0, 10, 40, 50], [20, 5, 60, 30]], size)])
    assert {"loss_mask", "loss_mask_point"} < losses.keys()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (found,) = model.eval().detect(batch, 0.0)
    assert found.masks is not None
    assert found.masks.probs.shape[1:] == (112, 112)


def with_point_rend(name: str, class_agnostic: bool = False) -> Predictor:
    config = presets.get(name, tiny=True).model
    config.num_classes, config.class_names, config.category_ids = 3, (), ()
    override(config, "mask_head.point_rend", '{"start_size": 14, "fc_channels": 16, "num_points": 100}')
    override(config, "mask_head.class_agnostic", class_agnostic)
    torch.manual_seed(0)
    return build_model(config)


def test_masks_learn_on_predicted_boxes() -> None:
    model = tiny(NAME).train()
    size = (61, 90)
    batch, targets = model.preprocess(pictures(size)), [objects([[10.0, 10, 40, 50], [20, 5, 60, 30]], size)]
    features = model.roi_features(model.backbone(batch.pixels))
    rois = model.box_head.sample(model.rpn(model.backbone(batch.pixels), batch.sizes), targets)
    predictor = model.get_submodule("box_head.box_predictor")
    torch.nn.init.zeros_(predictor.get_parameter("weight"))
    bias = torch.zeros(3, 4)
    bias[:, 0] = torch.tensor([1.0, 2, 3])  # of each class: right by this many tenths of the width
    with torch.no_grad():
        predictor.get_parameter("bias").copy_(bias.flatten())
    (stage,) = model.box_head.loss(features, rois, targets, batch.sizes)[1]
    real = rois.labels < 3
    real &= rois.valid
    width = rois.boxes[..., 2] - rois.boxes[..., 0]
    shift = width * (rois.labels.clamp(max=2) + 1) / 10
    expected = rois.boxes + torch.stack([shift, 0 * shift, shift, 0 * shift], dim=2)
    assert real.any()
    torch.testing.assert_close(stage.boxes[real], expected[real])
    assert not stage.boxes.requires_grad
    assert torch.equal(stage.gt_index, rois.gt_index)


def test_settings_that_do_not_go_together_are_told() -> None:
    cascade = presets.get("cascade_mask_rcnn_R_50_FPN_1x", tiny=True).model
    cascade.box_head.train_on_pred_boxes = True
    with pytest.raises(UserError, match=r"model.box_head.train_on_pred_boxes: expected false for a cascade"):
        build_model(cascade)


def test_a_few_steps_lower_both_losses() -> None:
    model = tiny(NAME).train()
    size = (61, 90)
    batch, targets = model.preprocess(pictures(size)), [objects([[10.0, 10, 40, 50], [20, 5, 60, 30]], size)]
    assert isinstance(model.mask_head, PointRend)
    optimizer = torch.optim.Adam(model.mask_head.parameters(), lr=1e-3)
    seen: list[Tensor] = []
    for _ in range(12):
        losses = model(batch, targets)
        both = torch.stack([losses["loss_mask"], losses["loss_mask_point"]])
        optimizer.zero_grad()
        both.sum().backward()
        optimizer.step()
        seen.append(both.detach())
    assert (seen[-1] < 0.7 * seen[0]).all()
