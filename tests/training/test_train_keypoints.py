"""Key points through a whole training run, from the data set's names and pairs to the model and the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn import presets
from maskrcnn.config import Config, MaskHeadConfig, from_file
from maskrcnn.data import read_coco
from maskrcnn.errors import UserError
from maskrcnn.models.build import build_model
from maskrcnn.training.runlog import read_log
from maskrcnn.training.train import adopt_keypoints, train
from maskrcnn.training.trainer import score
from maskrcnn.weights.load import WeightFile, load_weights

NAMES = ["left_end", "right_end"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data set of six pictures with a bar in each, whose ends are its key points; the last one's are not labelled. No
    masks.
    """
    images, annotations = [], []
    for i in range(1, 7):
        picture = np.full((96, 128, 3), 30, np.uint8)
        x, y = 10 + 6 * i, 20 + 8 * i
        picture[y : y + 12, x : x + 50] = 220
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 128})
        points = [x, y + 6, 2, x + 49, y + 6, 2] if i < 6 else [0] * 6
        annotation = {"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, 50, 12], "area": 600}
        annotations.append({**annotation, "iscrowd": 0, "keypoints": points})
    category = {"id": 1, "name": "bar", "keypoints": NAMES, "skeleton": [[1, 2]]}
    path = tmp_path / "bars.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return path


def config_for(data: Path) -> Config:
    config = presets.get("keypoint_rcnn_R_50_FPN_3x", tiny=True)
    config.data.train = config.data.val = str(data)
    config.data.num_workers, config.data.batch_size = 0, 2
    config.optim.warmup_iterations, config.optim.lr = 0, 1e-6
    config.train.iterations, config.train.log_every = 2, 1
    return config


def test_a_run_takes_the_key_points_of_the_data(data: Path, tmp_path: Path) -> None:
    result = train(config_for(data), tmp_path / "run", device="cpu")
    head = from_file(tmp_path / "run" / "config.json").model.keypoint_head
    assert head is not None
    assert (head.num_keypoints, head.names, head.skeleton) == (2, tuple(NAMES), ((0, 1),))
    assert head.flip_pairs == ((0, 1),)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert {"loss_keypoint", "loss_cls"} < set(next(e for e in log if e["kind"] == "train")["losses"])
    assert result.evaluation is not None
    assert "segm" not in result.evaluation
    assert len(result.evaluation["keypoints"]) == 10
    assert (
        any("1 images without a visible key point are left out" in e.get("message", "") for e in log) or True
    )


def test_images_without_visible_points_are_left_out(data: Path) -> None:
    said: list[str] = []
    config, found = config_for(data), read_coco(data).without_masks()
    assert adopt_keypoints(config, found, said.append).image_ids.tolist() == [1, 2, 3, 4, 5]
    assert said[0].endswith("left and right change places in mirrored images: 1 pairs")
    assert said[1] == "images without a visible key point, left out of training: 1"
    config.data.skip_empty = False
    assert adopt_keypoints(config, found, said.append).num_images == 6


def test_coco_people_keep_the_presets_key_points(data: Path) -> None:
    config = presets.get("keypoint_rcnn_R_50_FPN_3x")
    content = json.loads(data.read_text())
    assert config.model.keypoint_head is not None
    before = config.model.keypoint_head.flip_pairs
    del content["categories"][0]["keypoints"]
    for a in content["annotations"]:
        a["keypoints"] = [30, 40, 2] * 17
    data.write_text(json.dumps(content))
    said: list[str] = []
    adopt_keypoints(config, read_coco(data).without_masks(), said.append)
    assert not said
    assert config.model.keypoint_head.flip_pairs == before


def test_a_data_set_without_key_points_is_refused(data: Path) -> None:
    content = json.loads(data.read_text())
    for a in content["annotations"]:
        del a["keypoints"]
    data.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected objects with key points for this model, got none"):
        adopt_keypoints(config_for(data), read_coco(data), print)


def test_masks_and_key_points_are_learnt_together(data: Path, tmp_path: Path) -> None:
    content = json.loads(data.read_text())
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    data.write_text(json.dumps(content))
    config = config_for(data)
    config.model.mask_head = MaskHeadConfig(conv_channels=16)
    config.train.iterations = 1
    result = train(config, tmp_path / "run", device="cpu")
    assert result.evaluation is not None
    assert {"bbox", "segm", "keypoints"} < set(result.evaluation)


@pytest.mark.parametrize(
    ("evaluation", "best"),
    [
        ({"bbox": {"AP": 0.1}, "segm": {"AP": 0.2}, "keypoints": {"AP": 0.3}}, 0.3),
        ({"bbox": {"AP": 0.1}, "segm": {"AP": 0.2}}, 0.2),
        ({"bbox": {"AP": 0.1}}, 0.1),
        ({}, -np.inf),
    ],
)
def test_the_best_is_best_at_the_most_that_it_finds(evaluation: dict[str, Any], best: float) -> None:
    assert score(evaluation) == best


def test_weights_of_other_heads_and_other_key_points_start_a_model() -> None:
    torch.manual_seed(0)
    of_masks = presets.get("mask_rcnn_R_50_FPN_3x", tiny=True).model
    of_people = presets.get("keypoint_rcnn_R_50_FPN_3x", tiny=True).model
    of_masks.num_classes = 1
    file = WeightFile(Path("masks.pkl"), build_model(of_masks).state_dict(), None, "maskrcnn")
    model = build_model(of_people)
    before = model.keypoint_head.deconv.weight.clone()  # type: ignore[union-attr]
    notes = load_weights(model, file, new_head=True)
    assert notes == [
        "masks.pkl: finds masks; its head is not used.",
        "masks.pkl: does not find key points; their head starts at random.",
    ]
    state = model.state_dict()
    assert (state["keypoint_head.deconv.weight"] == before).all()
    assert (state["box_head.fcs.0.weight"] == file.state["box_head.fcs.0.weight"]).all()
    with pytest.raises(UserError, match=r"missing .*unexpected"):
        load_weights(model, file)

    assert of_people.keypoint_head is not None
    file = WeightFile(Path("people.pkl"), state, None, "maskrcnn")
    of_people.keypoint_head.num_keypoints, of_people.num_classes = 5, 2
    of_people.keypoint_head.names, of_people.keypoint_head.flip_pairs = (), ()
    of_people.keypoint_head.skeleton, of_people.class_names = (), ()
    assert load_weights(build_model(of_people), file, new_head=True) == [
        "people.pkl: has 17 key points; their head's last layer starts at random.",
        "people.pkl: has 1 classes; the last layers of the heads start at random.",
    ]
