"""Overrides by dotted name, and configs through JSON and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from maskrcnn import presets
from maskrcnn.config import Config, ModelConfig, field_names, from_dict, from_file, override, to_dict, to_json
from maskrcnn.errors import UserError


def config() -> Config:
    return presets.get("mask_rcnn_mobilenet_v2_FPN")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.lr", "0.5", 0.5),
        ("optim.lr", "1e-3", 1e-3),
        ("train.compile", "true", True),
        ("train.compile", "False", False),
        ("data.augment.min_sizes", "640,800", (640, 800)),
        ("data.augment.min_sizes", "640", (640,)),
        ("data.augment.crop_size", "null", None),
        ("data.augment.crop_size", "(320, 256)", (320, 256)),
        ("model.rpn.anchor_sizes", "[[8],[16]]", ((8.0,), (16.0,))),
        ("model.rpn.anchor_sizes", "((8.0,), (16.0, 24.0))", ((8.0,), (16.0, 24.0))),
        ("model.rpn.anchor_sizes", "((8, 12.5),)", ((8.0, 12.5),)),
        ("data.augment.crop_size", "None", None),
        ("data.train", "a folder/x.json", "a folder/x.json"),
        ("data.train", "a, b (1).json", "a, b (1).json"),
    ],
)
def test_overrides_parse_as_the_fields_type(name: str, text: str, value: object) -> None:
    c = config()
    override(c, name, text)
    for part in name.split("."):
        c = getattr(c, part)
    assert c == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optim.learning_rate", "1", "no such setting"),
        ("optim.lrr", "1", "Did you mean 'optim.lr'"),
        ("optim", "1", "no such setting"),
        ("optim.lr.x", "1", "no such setting"),
        ("optim.lr", "fast", "--optim.lr 'fast'"),
        ("optim.optimizer", "adam", "--optim.optimizer 'adam'"),
        ("data.augment.crop_size", "1,2,3", "crop_size"),
        ("model.rpn.anchor_sizes", "32,64", r"Write it like \(\("),
        ("optim.lr", "[" * 100_000, "--optim.lr "),
        ("optim.lr", "inf", "--optim.lr 'inf': expected a finite number, got inf"),
        ("optim.clip_grad_norm", "1e999", "expected a finite number, got inf"),
        ("model.input.pixel_mean", "1,2,1e999", "expected a finite number, got inf"),
        ("model.rpn.nms_threshold", "nan", "expected a number from 0 to 1, got nan"),
        ("model.rpn.anchor_sizes", "((8,), (-1,))", "expected a number from .*, got -1"),
        ("model.box_head.pool_size", "100000000", "expected a number from 1 to 256"),
    ],
)
def test_wrong_overrides_are_one_line(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        override(config(), name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_every_setting_is_taken_as_help_prints_it(name: str) -> None:
    given, taken = presets.get(name), config()
    taken.model.backbone, taken.model.fpn = given.model.backbone, given.model.fpn
    for setting in field_names(taken):
        value: object = taken
        for part in setting.split("."):
            value = getattr(value, part)
        override(taken, setting, repr(value) if not isinstance(value, str) else value)
    taken.model.backbone, taken.model.fpn = config().model.backbone, config().model.fpn
    assert taken == config()


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_a_preset_survives_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(to_json(presets.get(name)))
    assert from_file(path) == presets.get(name)


def test_unknown_and_wrong_fields_of_a_file_name_their_place() -> None:
    values = to_dict(config())
    values["model"]["backbone"]["widht"] = 2
    with pytest.raises(
        UserError, match=r"run.json: model: backbone: no such setting 'widht'. Did you mean 'width'"
    ):
        from_dict(Config, values, "run.json")
    values = to_dict(config())
    values["optim"]["lr"] = "fast"
    with pytest.raises(UserError, match=r"run.json: optim.lr"):
        from_dict(Config, values, "run.json")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_of_a_file_is_without_end(value: float) -> None:
    """In any of its floats, those of lists and of parts that may be absent among them."""
    good = to_dict(presets.get("cascade_mask_rcnn_R_50_FPN_3x"))
    good["train"]["max_minutes"] = good["train"]["ema_decay"] = 0.5
    for place in floats_of(good):
        values = json.loads(json.dumps(good))
        part = values
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        with pytest.raises(UserError, match=f"run.json: .*got {value}"):
            from_dict(Config, values, "run.json")


def floats_of(values: object) -> list[tuple[str | int, ...]]:
    if isinstance(values, float):
        return [()]
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, tuple) else ()
    )
    return [(key, *rest) for key, value in items for rest in floats_of(value)]


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "expected an object")])
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        from_file(path)
    with pytest.raises(UserError, match="cannot read"):
        from_file(tmp_path / "absent.json")


def test_every_knob_is_named_once() -> None:
    names = field_names(config())
    assert len(names) == len(set(names))
    assert json.loads(to_json(config()))["optim"]["lr"] == 3e-4


@pytest.mark.parametrize("name", ["mask_rcnn_internimage_t_fpn_1x_coco", "maskrcnn_resnet50_fpn"])
def test_rules_of_a_config_saved_before_they_were_one_group_are_kept(name: str) -> None:
    saved = json.loads(Path(__file__).with_name("configs_before_rules.json").read_text())[name]
    assert from_dict(Config, saved, "config.json") == presets.get(name)
    assert from_dict(ModelConfig, saved["model"], "config") == presets.get(name).model
