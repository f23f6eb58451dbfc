"""Broken pictures, before a training and during it, cost the training nothing but themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskrcnn import presets
from maskrcnn.config import Config
from maskrcnn.errors import UserError
from maskrcnn.training import train as training
from maskrcnn.training.runlog import read_log
from maskrcnn.training.train import train
from tests.data.data_sets import write_set


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def config_for(data: Path) -> Config:
    config = presets.get("mask_rcnn_R_50_FPN_3x", tiny=True)
    config.data.train = str(data)
    config.data.num_workers, config.data.batch_size = 0, 2
    config.model.input.min_size, config.model.input.max_size = 64, 96
    config.optim.warmup_iterations, config.optim.lr = 0, 1e-6
    config.train.iterations, config.train.evaluate_every, config.train.checkpoint_every = 2, 1, 2
    return config


def test_a_broken_picture_of_either_part_is_left_out(tmp_path: Path, capsys: Any) -> None:
    data = write_set(tmp_path / "set", "coco")
    cut(data / "train" / "b.png")
    cut(data / "val" / "e.png")
    train(config_for(data), tmp_path / "run", device="cpu")
    said = capsys.readouterr()
    told = said.out + said.err
    assert "training: 2 images" in told
    assert "validation: 1 images" in told
    assert told.count("image_unreadable: 1 (the image is left out)") == 2
    assert len([e for e in read_log(tmp_path / "run" / "log.jsonl") if e["kind"] == "eval"]) == 2


def test_a_picture_that_breaks_before_an_evaluation_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data = write_set(tmp_path / "set", "coco")
    scored, numbers = training.evaluate_results, []

    def then_break(truth: Any, *rest: Any, **options: Any) -> Any:
        numbers.append(len(truth.sizes))
        cut(data / "val" / "e.png")
        return scored(truth, *rest, **options)

    monkeypatch.setattr(training, "evaluate_results", then_break)
    train(config_for(data), tmp_path / "run", device="cpu")
    assert numbers == [2, 1]
    said = capsys.readouterr()
    assert "validation: left out from now on: " in said.out + said.err


def test_a_validation_part_that_is_gone_is_one_line(tmp_path: Path) -> None:
    config = config_for(write_set(tmp_path / "set", "coco"))
    train_data, val = training.open_data(config.data, lambda line: None, config.model)
    assert val is not None
    training.adopt_classes(config, train_data, lambda line: None)
    process = training.distributed.join("cpu")
    validate = training.validation(config, val, process, lambda line: None)
    for i in range(val.num_images):
        val.image_path(i).unlink()
    with pytest.raises(
        UserError, match="no picture with objects of the validation part can be read any more"
    ):
        validate(training.build_model(config.model).eval())
