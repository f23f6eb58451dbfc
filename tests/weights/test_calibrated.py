"""A temperature is kept in the weight file, in which nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskrcnn import presets, zoo
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.weights.calibrated import file_to_calibrate, keep_temperature
from maskrcnn.weights.checksums import write_checksums
from maskrcnn.weights.load import read_weights
from maskrcnn.weights.write import write_weights

NAME = "mask_rcnn_mobilenet_v2_FPN"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = presets.get(NAME, tiny=True).model
    write_weights(tmp_path / "model.safetensors", build_model(config).state_dict(), config, iteration=7)
    return tmp_path


def test_it_is_kept_and_multiplied(run: Path) -> None:
    path = file_to_calibrate(run)
    assert path == run / "model.safetensors"
    before = path.read_bytes()
    weights = read_weights(run).state
    assert keep_temperature(path, 1.5) == 1.5
    assert keep_temperature(path, 1.2) == pytest.approx(1.8)
    assert zoo.load(run).config.box_head.temperature == pytest.approx(1.8)
    after = read_weights(run).state
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[k], weights[k]) for k in weights)
    keep_temperature(path, 1 / zoo.load(run).config.box_head.temperature)
    assert path.read_bytes() == before  # other metadata too


def test_a_file_of_ours_will_do(run: Path) -> None:
    assert file_to_calibrate(run / "model.safetensors") == run / "model.safetensors"


def test_what_cannot_keep_it_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no weights")
    for model in (NAME, tmp_path / "model.onnx", tmp_path / "none"):
        with pytest.raises(UserError, match="expected a run's folder or a safetensors file of ours"):
            file_to_calibrate(model)
    write_checksums(run)
    with pytest.raises(UserError, match="part of a checkpoint, whose files do not change"):
        file_to_calibrate(run)
