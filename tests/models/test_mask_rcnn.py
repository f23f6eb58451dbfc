"""Mask R-CNN as a whole: inference, its modes and its settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn import presets
from maskrcnn.config import BoxHeadConfig, ResNetConfig
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from tests.models.tiny import objects, pictures, random_boxes, tiny

ORDINARY = [[10.0, 10.0, 40.0, 50.0], [20.0, 5.0, 60.0, 30.0]]


def test_nothing_above_the_threshold_is_nothing() -> None:
    model = tiny()
    model.box_head.config.score_threshold = 1.0
    result = model.predict(np.zeros((50, 60, 3), np.uint8))
    assert len(result) == 0
    assert result.boxes.shape == (0, 4)
    assert np.asarray(result.masks).shape == (0, 50, 60)
    assert result.to_coco() == []


def test_the_threshold_can_be_chosen_for_one_call() -> None:
    model = tiny()
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    everything = model.predict(image, score_threshold=0.0)
    assert len(everything) > 0
    middle = everything.scores.median().item()
    assert (model.predict(image, score_threshold=middle).scores > middle).all()


def test_a_list_gives_a_list_and_a_batch_gives_what_single_images_do() -> None:
    model = tiny()
    model.box_head.config.score_threshold = 0.0
    images = [np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8) for i in range(2)]
    results = model.predict(images)
    assert isinstance(results, list)
    together = model.eval().detect(model.preprocess([torch.from_numpy(i).permute(2, 0, 1) for i in images]))
    for one, other in zip(results, together, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)


def test_training_mode_survives_prediction() -> None:
    model = tiny().train()
    model.predict(np.zeros((40, 40, 3), np.uint8))
    assert model.training


@pytest.mark.parametrize(
    "image",
    [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40, 3), np.float32)],
)
def test_arrays_of_another_kind_are_refused(image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"expected an \(H, W, 3\) uint8 RGB array, got"):
        tiny().predict(image)


def test_the_samples_depend_on_the_targets_seed_alone() -> None:
    model = tiny().train()
    batch = model.preprocess(pictures((61, 90)))

    def losses(seed: int) -> list[float]:
        with torch.no_grad():
            return [
                v.item()
                for v in model(batch, [objects(random_boxes(500, (61, 90)), (61, 90), seed)]).values()
            ]

    first = losses(1)
    torch.manual_seed(123)
    assert losses(1) == first
    assert losses(2) != first


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "gn"])
def test_every_resnet_runs(depth: int, norm: str) -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    config.backbone = ResNetConfig(depth=depth, norm=norm, width=0.125)  # type: ignore[arg-type]
    model = build_model(config).eval()
    assert [tuple(f.shape[2:]) for f in model.backbone(torch.zeros(1, 3, 64, 96))] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
    ]


def test_resnext_has_the_published_number_of_parameters() -> None:
    config = presets.get("mask_rcnn_R_50_FPN_3x").model
    config.backbone = ResNetConfig(depth=101, groups=32, width_per_group=8, stride_in_1x1=False)
    assert sum(p.numel() for p in build_model(config).parameters()) == 107_427_760


def test_class_agnostic_heads_of_convolutions() -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    config.box_head = BoxHeadConfig(
        num_convs=2, conv_channels=8, num_fcs=1, fc_channels=16, norm="gn", class_agnostic=True
    )
    config.mask_head.class_agnostic = True  # pyright: ignore[reportOptionalMemberAccess]
    model = build_model(config).train()
    losses = model(model.preprocess(pictures((61, 90))), [objects(ORDINARY, (61, 90))])
    torch.stack(list(losses.values())).sum().backward()
    assert model.mask_head.predictor.weight.shape[0] == 1  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 0, "model.num_classes: expected at least 1"),
        ("class_names", ("one",), "model.class_names: expected one a class"),
    ],
)
def test_contradicting_settings_are_refused(field: str, value: object, message: str) -> None:
    config = presets.get("mask_rcnn_R_50_FPN_1x", tiny=True).model
    setattr(config, field, value)
    with pytest.raises(UserError, match=message):
        build_model(config)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'mask_rcnn_R_50_FPN_3x'"):
        presets.get("mask_rcnn_r50_fpn_3x")
