"""Weights for colours in models of bands: the stated rule, checked by what the first layer says of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskrcnn import presets
from maskrcnn.config import InputConfig
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.models.predictor import Predictor
from maskrcnn.weights.load import WeightFile, load_weights

BGR, RGB = "mask_rcnn_R_50_FPN_1x", "mask_rcnn_mobilenet_v2_FPN"
FAMILIES = [
    BGR,
    RGB,
    "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ",
    "mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco",
    "mask_rcnn_convnext_tiny_1k_3x",
    "mask_rcnn_internimage_t_fpn_1x_coco",
    "mask_rcnn_vitdet_b_100ep",
    "mask_rcnn_deit_tiny_fpn_3x_coco",
    "mask_rcnn_deit_adapter_tiny_fpn_1x_coco",
    "mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco",
]


def model_of(name: str, channels: int = 0) -> Predictor:
    config = presets.get(name, tiny=True).model
    if channels:
        config.input.channels = channels
        config.input.pixel_mean, config.input.pixel_std = (0.0,) * channels, (1.0,) * channels
    else:
        config.input.pixel_mean = (0.0, 0.0, 0.0)
        config.input.pixel_std = (1.0, 1.0, 1.0)
    return build_model(config).double().eval()


def widened(colours: Predictor, name: str, channels: int) -> tuple[Predictor, list[str]]:
    model = model_of(name, channels)
    state: Mapping[str, Tensor] = colours.state_dict()
    file = WeightFile(Path("colours.pth"), dict(state), colours.config, "maskrcnn")
    return model, load_weights(model, file)


def maps(model: Predictor, image: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return model.backbone(model.preprocess([image]).pixels)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_band_is_seen_as_grey_was(name: str) -> None:
    colours = model_of(name)
    one, notes = widened(colours, name, 1)
    grey = torch.rand(1, 64, 64) * 255
    for found, expected in zip(maps(one, grey), maps(colours, grey.expand(3, -1, -1)), strict=True):
        torch.testing.assert_close(found, expected)
    assert notes == ["colours.pth: made for colours; its first convolution is fitted to 1 band."]


@pytest.mark.parametrize("name", [BGR, RGB])
def test_three_bands_are_red_green_and_blue_in_the_files_order(name: str) -> None:
    colours = model_of(name)
    three, _ = widened(colours, name, 3)
    picture = torch.rand(3, 64, 64) * 255
    for found, expected in zip(maps(three, picture), maps(colours, picture), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [BGR, RGB])
def test_six_bands_take_the_colours_twice_at_half_the_weight(name: str) -> None:
    colours = model_of(name)
    six, _ = widened(colours, name, 6)
    picture = torch.rand(3, 64, 64) * 255
    for found, expected in zip(maps(six, picture.repeat(2, 1, 1)), maps(colours, picture), strict=True):
        torch.testing.assert_close(found, expected)


def test_weights_of_bands_are_loaded_as_they_are_and_fit_no_other_number() -> None:
    model = model_of(BGR, 3)
    file = WeightFile(Path("three.safetensors"), model.state_dict(), model.config, "maskrcnn")
    again = model_of(BGR, 3)
    assert load_weights(again, file) == []
    assert torch.equal(
        again.state_dict()["backbone.body.stem.conv.weight"], file.state["backbone.body.stem.conv.weight"]
    )
    with pytest.raises(UserError, match=r"1 of another shape \(backbone.body.stem.conv.weight"):
        load_weights(model_of(BGR, 4), file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 4}, "model.input.pixel_mean: expected one a channel, 4, got 3"),
        (
            {"channels": 3, "stretch": ((0.0, 1.0),)},
            "model.input.stretch: expected a range for each of 3 bands, got 1",
        ),
        (
            {"channels": 3, "stretch": ((1.0, 1.0),) * 3},
            "model.input.stretch: expected ranges from low to high",
        ),
        (
            {"channels": 3, "shown_bands": (0, 3, 1)},
            "model.input.shown_bands: expected one or three of the 3 bands",
        ),
        ({"pixel_std": (1.0,)}, "model.input.pixel_std: expected one a channel, 3, got 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    config = presets.get(BGR, tiny=True).model
    config.input = InputConfig(**changes)
    with pytest.raises(UserError, match=said):
        build_model(config)
