"""`maskrcnn train` as people use it: published weights, their own labels, one command; then evaluate and predict."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from maskrcnn import presets, zoo
from maskrcnn.cli import train
from maskrcnn.cli.main import main
from maskrcnn.config import Config, from_file
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.presets.tiny import shrink
from maskrcnn.weights.write import write_weights
from tests.data.label_files import picture, write_json

NAME = "mask_rcnn_R_50_FPN_3x"
PUBLISHED = presets.PRESETS[NAME]


def tiny() -> Config:
    config = shrink(PUBLISHED())
    config.data.num_workers = 0
    return config


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of the preset's tiny variant for 80 classes, set as its published ones; the variant takes the preset's
    name.
    """
    config = tiny()
    monkeypatch.setitem(presets.PRESETS, NAME, tiny)
    torch.manual_seed(0)
    path = tmp_path / "published.safetensors"
    write_weights(path, build_model(config.model).state_dict(), config.model)
    monkeypatch.setattr(zoo, "published_weights", lambda name: path, raising=False)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six LabelMe files with two classes, in one folder."""
    folder = tmp_path / "labels"
    for k in range(6):
        picture(folder / f"{k}.png", (64, 96))
        points = [[[10, 10], [40, 10], [40, 40]], [[50, 20], [90, 20], [90, 60], [50, 60]]]
        shapes = [
            {"label": n, "points": p, "shape_type": "polygon"}
            for n, p in zip(("nut", "bolt"), points, strict=True)
        ]
        write_json(folder / f"{k}.json", {"shapes": shapes, "imagePath": f"{k}.png"})
    return folder


@pytest.mark.slow
def test_train_evaluate_predict(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "--data", str(data), "--model", NAME, "--out", str(run), "--device", "cpu"]
    few = ["--train.iterations", "4", "--data.batch_size", "2"]
    assert main([*words, *few]) == 0
    said = capsys.readouterr()
    told = said.out + said.err
    assert "(labelme)" in told
    assert "1 of the 6 images are kept out of training" in told
    assert "2 classes from the data set: bolt, nut" in told
    assert "has 80 classes; the last layers of the heads start at random" in told
    assert "schedule: 4 iterations of 2" in told
    saved = from_file(run / "config.json")
    assert saved.train.weights == str(weights)
    assert saved.optim.milestones == (3, 4)
    assert (saved.data.val_fraction, saved.model.class_names) == (0.2, ("bolt", "nut"))

    # Resumed with more iterations: what was chosen at the start holds.
    assert main([*words, "--resume", "--train.iterations", "6", "--data.batch_size", "2"]) == 0
    assert from_file(run / "config.json").optim.milestones == (3, 4)

    capsys.readouterr()
    assert main(["evaluate", "--data", str(data), "--model", str(run), "--device", "cpu"]) == 0
    assert "train part" in capsys.readouterr().err
    out = tmp_path / "predicted"
    words = ["predict", str(data / "0.png"), "--model", str(run), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--score-threshold", "0"]) == 0
    entries = json.loads((out / "predictions.json").read_text())
    assert {e["category_id"] for e in entries} <= {1, 2}
    config = zoo.load(run, device="cpu").config
    assert (config.class_names, config.category_ids) == (("bolt", "nut"), (1, 2))


def start(tmp_path: Path, *words: str) -> Config:
    """Config with which `maskrcnn train` would begin."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    train.add_arguments(parser)
    args, extra = parser.parse_known_args([*words, "--out", str(tmp_path / "run")])
    config, given = train.config_from(args, extra), {name for name, _ in train.dotted(extra)}
    train.choose_start(config, given, args)
    return config


def test_where_the_weights_come_from(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(tmp_path, "--model", NAME).train.weights == str(weights)
    assert start(tmp_path, "--model", NAME, "--weights", "none").train.weights == ""
    assert start(tmp_path, "--model", NAME, "--weights", "my.pkl").train.weights == "my.pkl"
    assert start(tmp_path, "--model", NAME, "--train.weights", "my.pkl").train.weights == "my.pkl"
    assert start(tmp_path, "--model", "mask_rcnn_mobilenet_v2_FPN").train.weights == ""

    def offline(name: str) -> Path:
        raise UserError(f"{name}: not in the cache.")

    monkeypatch.setattr(zoo, "published_weights", offline, raising=False)
    with pytest.raises(UserError, match=r"not in the cache\. Or give --weights FILE, or --weights none"):
        start(tmp_path, "--model", NAME)


def test_how_much_is_kept_for_validation(weights: Path, tmp_path: Path) -> None:
    assert start(tmp_path, "--model", NAME).data.val_fraction == 0.2
    assert start(tmp_path, "--model", NAME, "--data.val_fraction", "0").data.val_fraction == 0
