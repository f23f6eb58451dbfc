"""The settings that predict and evaluate share: they reach the model, and mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import zoo
from maskrcnn.cli.main import main
from maskrcnn.masks import rle_decode
from maskrcnn.models.predictor import Predictor

Run = Callable[..., int]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Tiny random model that `zoo.load` gives for any name; it finds things everywhere."""
    torch.manual_seed(0)
    model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
    model.config.box_head.score_threshold = 0.0
    monkeypatch.setattr(zoo, "load", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 50, "width": 60}],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in range(1, 4)],
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    return tmp_path / "data.json"


@pytest.fixture(params=["predict", "evaluate"])
def run(request: pytest.FixtureRequest, data: Path) -> Run:
    """Run the verb on one image, with more options; results are left in results.json."""

    def run(*options: object) -> int:
        words = [str(o) for o in options]
        if request.param == "predict":
            out = data.parent / "out"
            status = main(["predict", str(data.parent / "one.png"), "--out", str(out), "--no-draw", *words])
            if status == 0:
                (out / "predictions.json").rename(data.parent / "results.json")
            return status
        save = ["--save-results", str(data.parent / "results.json")]
        return main(["evaluate", "--data", str(data), *save, *words])

    return run


def results(data: Path) -> list[dict]:
    return json.loads((data.parent / "results.json").read_text())


def test_every_setting_reaches_the_model(run: Run, model: Predictor, data: Path) -> None:
    options = ("--score-threshold", 1e-9, "--nms-threshold", 0.3, "--class-agnostic-nms")
    options += ("--detections-per-image", 4, "--mask-threshold", 0.7, "--min-size", 64, "--max-size", 80)
    assert run("--model", "tiny", *options) == 0
    c = model.config
    box = c.box_head
    assert (box.score_threshold, box.nms_threshold, box.class_agnostic_nms) == (1e-9, 0.3, True)
    assert box.detections_per_image == 4
    assert c.mask_head is not None
    assert (c.mask_head.threshold, c.input.min_size, c.input.max_size) == (0.7, 64, 80)
    assert len(results(data)) == 4


def test_what_is_not_given_is_the_models_own(run: Run, model: Predictor, data: Path) -> None:
    before = repr(model.config)
    assert run("--model", "tiny") == 0
    assert repr(model.config) == before


def test_class_agnostic_suppression_leaves_fewer(run: Run, model: Predictor, data: Path) -> None:
    model.config.box_head.detections_per_image = 1000
    assert run("--model", "tiny", "--nms-threshold", 0.5) == 0
    by_class = len(results(data))
    assert run("--model", "tiny", "--nms-threshold", 0.5, "--class-agnostic-nms") == 0
    assert 0 < len(results(data)) < by_class


def test_a_higher_mask_threshold_gives_smaller_masks(run: Run, model: Predictor, data: Path) -> None:
    areas = []
    for threshold in (0.2, 0.4, 0.6, 0.8):
        assert run("--model", "tiny", "--mask-threshold", threshold, "--min-size", 64) == 0
        areas.append(sum(int(rle_decode(entry["segmentation"]).sum()) for entry in results(data)))
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[3]


@pytest.mark.parametrize(
    ("options", "sizes", "longest"),
    [
        (["--tta"], (400, 500, 600, 700, 800, 900, 1000, 1100, 1200), 4000),
        (["--tta-sizes", "32", "48"], (32, 48), 4000),
        (["--tta", "--tta-sizes", "32", "--max-size", "40"], (32,), 40),
    ],
)
def test_test_time_augmentation_is_asked_for(
    run: Run,
    model: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sizes: tuple[int, ...],
    longest: int,
) -> None:
    asked = []

    def views(model: Predictor, image: np.ndarray, tta_config: object) -> object:
        asked.append((image.shape, tta_config))
        return model.predict(image, min_size=32)

    monkeypatch.setattr("maskrcnn.evaluation.inference.detect_in_views", views)
    assert run("--model", "tiny", *options) == 0
    ((shape, config),) = asked
    assert shape == (50, 60, 3), "the whole picture: each view is resized from it"
    assert (config.min_sizes, config.max_size, config.horizontal_flip) == (sizes, longest, True)


def test_views_are_merged_into_results(run: Run, model: Predictor, data: Path) -> None:
    assert run("--model", "tiny", "--tta-sizes", 32, 48, "--detections-per-image", 9) == 0
    entries = results(data)
    assert len(entries) == 9
    assert all(entry["segmentation"]["size"] == [50, 60] for entry in entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nms-threshold", "1.5"], "--nms-threshold: expected a number from 0 to 1, got '1.5'"),
        (["--mask-threshold", "x"], "--mask-threshold: expected a number from 0 to 1, got 'x'"),
        (["--detections-per-image", "0"], "--detections-per-image: expected a whole number from 1, got '0'"),
        (["--tta-sizes", "0"], "--tta-sizes: expected a whole number from 1, got '0'"),
        (["--tta", "--min-size", "64"], "--min-size: expected without test-time augmentation"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, model: Predictor, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run("--model", "tiny", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_settings_that_a_model_has_no_use_for_are_refused(
    run: Run, model: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pose = zoo.build("keypoint_rcnn_R_50_FPN_1x", tiny=True)
    monkeypatch.setattr(zoo, "load", lambda *args, **kwargs: pose)
    assert run("--model", "tiny", "--mask-threshold", 0.4) == 2
    assert "--mask-threshold: expected a model with masks" in capsys.readouterr().err
    assert run("--model", "tiny", "--tta") == 2
    assert "expected a model without key points" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--tta", "--score-threshold=0.3", "--class-agnostic-nms", "--precision=bf16"]
)
def test_they_go_with_a_model_not_with_results(
    data: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["evaluate", "--data", str(data), "--results", str(data), option]) == 2
    assert f"{option.split('=')[0]} goes with --model, not with --results" in capsys.readouterr().err


def test_a_threshold_of_zero_is_one(run: Run, model: Predictor, data: Path) -> None:
    model.config.box_head.score_threshold = 1.0
    assert run("--model", "any", "--score-threshold", 0) == 0
    assert json.loads((data.parent / "results.json").read_text())
    assert model.config.box_head.score_threshold == 0.0
