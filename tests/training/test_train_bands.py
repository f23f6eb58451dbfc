"""A model of bands from doctor to drawing: 16 bits stay 16 bits, and what does not fit is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import presets
from maskrcnn.cli.main import main
from maskrcnn.config import Config
from maskrcnn.data.loader import TrainLoader
from maskrcnn.training.train import open_data, train
from maskrcnn.zoo import load
from tests.data.test_bands import data_of

COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of two bands, of which the first uses 100 of 65,536 levels, with one square an image."""
    folder, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    pictures = rng.integers(30_000, 30_100, (COUNT, 64, 64, 2)).astype(np.uint16)
    data_of(folder, list(pictures))
    return folder


def config_of(folder: Path) -> Config:
    config = presets.get("mask_rcnn_mobilenet_v2_FPN", tiny=True)
    config.model.input.channels = 2
    config.data.train = config.data.val = str(folder / "labels.json")
    config.data.num_workers, config.data.batch_size = 0, 2
    config.data.augment.min_sizes = (64,)
    config.model.input.min_size = 64
    config.train.iterations, config.train.evaluate_every, config.train.precision = 2, 0, "fp32"
    config.optim.milestones, config.optim.warmup_iterations = (), 0
    return config


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(folder), out, device="cpu")
    return out


def test_training_keeps_what_it_measured_in_the_model(run: Path) -> None:
    c = load(run, engine="eager").config.input
    assert (c.channels, c.depth) == (2, "uint16")
    assert all(30_000 <= low < high <= 30_100 for low, high in c.stretch)
    assert len(c.pixel_mean) == len(c.pixel_std) == 2


def test_training_sees_levels_that_8_bits_would_lose(folder: Path, run: Path) -> None:
    config = config_of(folder)
    config.model = load(run, engine="eager").config
    config.data.augment.horizontal_flip = 0.0
    data, _ = open_data(config.data, lambda text: None, config.model)
    source: Any = data  # its cached properties are properties, whatever pyright says
    images, _, _ = next(iter(TrainLoader(source, config.data, 0, COUNT, input=config.model.input)))
    assert all(image.dtype == torch.float32 and image.shape == (2, 64, 64) for image in images)
    assert all(len(image.unique()) > 90 for image in images)  # of 8 bits a single level would be left


def test_a_path_and_an_array_are_found_alike_and_drawn(folder: Path, run: Path, tmp_path: Path) -> None:
    model, path = load(run, engine="eager"), folder / "0.npy"
    of_path, of_array = (model.predict(given, score_threshold=0.0) for given in (path, np.load(path)))
    assert len(of_path) > 0
    assert torch.equal(of_path.boxes, of_array.boxes)
    drawn = of_path.draw(tmp_path / "drawn.png", score_threshold=0.99)
    assert np.array_equal(drawn, of_array.draw(score_threshold=0.99))
    assert len(np.unique(drawn)) > 50  # stretched, not black


def test_the_commands_take_bands(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(run), "--engine", "eager"]
    pictures = [str(folder / f"{i}.npy") for i in range(COUNT)]
    assert main(["predict", *pictures, *model, "--out", str(tmp_path / "found")]) == 0
    assert sorted(p.name for p in (tmp_path / "found").glob("*.jpg")) == [f"{i}.jpg" for i in range(COUNT)]
    assert main(["predict", str(folder), *model, "--out", str(tmp_path / "again"), "--no-draw"]) == 0
    labels = str(folder / "labels.json")
    assert main(["evaluate", "--data", labels, *model, "--report", str(tmp_path / "report")]) == 0
    assert main(["view", labels, *model, "--out", str(tmp_path / "pages")]) == 0
    assert main(["doctor", labels, "--channels", "2"]) == 0
    assert "band 1: uint16, 30000 to 30099, stretched from 30000 to 30099" in capsys.readouterr().out


def test_what_takes_colours_alone_refuses_in_one_line(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(run)]
    picture = str(folder / "0.npy")
    for command in (
        ["predict", picture, *model, "--tile", "64", "--overlap", "16", "--out", str(tmp_path / "tiles")],
        ["export", *model, "--format", "onnx", "--out", str(tmp_path / "model.onnx")],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].endswith(
            "expected a model of colour pictures, got one of bands (model.input.channels 2)."
        )


def test_a_picture_of_other_bands_is_skipped_with_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "colours.png")
    picture = str(tmp_path / "colours.png")
    assert main(["predict", picture, "--model", str(run), "--out", str(tmp_path / "out")]) == 1
    assert (
        "colours.png: expected 2 bands (model.input.channels), got an array (64, 64, 3)"
        in capsys.readouterr().err
    )


def test_another_depth_than_the_first_pictures_is_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    for i in range(COUNT):
        pixels = np.load(folder / f"{i}.npy")
        np.save(tmp_path / f"{i}.npy", pixels.astype(np.float32) if i == 2 else pixels)
    (tmp_path / "labels.json").write_text((folder / "labels.json").read_text())
    config, said = config_of(tmp_path), list[str]()
    train_data, val_data = open_data(config.data, said.append, config.model)
    assert val_data is not None
    assert (train_data.num_images, val_data.num_images) == (COUNT - 1, COUNT - 1)
    assert config.model.input.depth == "uint16"
    assert sum("2.npy: expected bands of uint16, got float32" in line for line in said) == 2
