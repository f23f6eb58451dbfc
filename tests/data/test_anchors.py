"""Anchors for a data set: what the objects' sizes are to the network, and the sizes that overlap them best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskrcnn.cli.main import main
from maskrcnn.config import InputConfig, override, to_json
from maskrcnn.data import CocoData, find_data, read_data
from maskrcnn.data.anchors import fit_anchors, fitted_sizes, object_sizes
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.presets import get
from tests.data.data_sets import write_set
from tests.data.label_files import picture, write_json


def squares(folder: Path, sides: list[int], size: tuple[int, int] = (100, 200)) -> CocoData:
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": s * s, "bbox": [0, 0, s, s]}
        | {"segmentation": [[0, 0, s, 0, s, s, 0, s]]}
        for k, s in enumerate(sides)
    ]
    picture(folder / "a.png", size)
    images = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    write_json(folder / "labels.json", content)
    return read_data(find_data(folder).train)


def test_sizes_are_those_of_the_network(tmp_path: Path) -> None:
    data = squares(tmp_path, [10, 20])
    assert object_sizes(data, InputConfig(min_size=300, max_size=1000)).tolist() == [[30, 30], [60, 60]]
    assert object_sizes(data, InputConfig(min_size=300, max_size=400)).tolist() == [[20, 20], [40, 40]]


def test_anchors_that_objects_fit_exactly_are_found() -> None:
    sides = np.repeat([[9.5], [19], [38], [76], [152]], 2, axis=1)
    fit = fit_anchors(sides)
    assert fit.sizes == pytest.approx([9.5, 19, 38, 76, 152], rel=0.02)
    assert fit.overlap > 0.97
    assert fit.usual < 0.7


def test_wide_and_high_objects_count_by_the_best_ratio() -> None:
    wide = np.array([[32 * 2**0.5, 32 / 2**0.5]])  # an anchor of 32 at ratio 0.5
    fit = fit_anchors(wide)
    assert fit.usual == pytest.approx(1)
    assert fit.overlap == pytest.approx(1, abs=0.02)


def test_nothing_to_fit_leaves_the_usual_ones() -> None:
    assert fit_anchors(np.zeros((0, 2))).sizes == (32, 64, 128, 256, 512)


def test_a_pyramid_has_one_size_a_level_and_one_map_has_all(tmp_path: Path) -> None:
    data = squares(tmp_path, [10])
    pyramid, one_map = (get(n).model for n in ("mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x"))
    assert [len(level) for level in fitted_sizes(pyramid, data)] == [1] * 5
    assert [len(level) for level in fitted_sizes(one_map, data)] == [5]


def test_a_model_is_not_built_of_anchors_that_training_alone_knows() -> None:
    config = get("mask_rcnn_R_50_FPN_1x", tiny=True)
    override(config, "model.rpn.anchor_sizes", "auto")
    with pytest.raises(UserError, match=r"model\.rpn\.anchor_sizes: expected sizes, got auto"):
        build_model(config.model)


@pytest.mark.slow
def test_training_takes_them_and_the_run_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "set", "coco")
    config = get("mask_rcnn_mobilenet_v2_FPN", tiny=True)
    (tmp_path / "config.json").write_text(to_json(config))
    words = [
        "train",
        "--config",
        str(tmp_path / "config.json"),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--model.rpn.anchor_sizes", "auto", "--train.iterations", "1", "--device", "cpu"]
    words += ["--train.weights", "", "--data.num_workers", "0", "--data.batch_size", "1"]
    assert main(words) == 0
    assert "anchors from the data set, in pixels of the network: " in capsys.readouterr().out
    saved = (tmp_path / "run" / "config.json").read_text()
    assert '"auto"' not in saved
    assert main(["doctor", str(data)]) == 0
    assert "train with --model.rpn.anchor_sizes auto" in capsys.readouterr().out
