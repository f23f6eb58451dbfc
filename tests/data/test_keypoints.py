"""Key points from the JSON through the checks and every transform."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn.data import CocoData, checked, find_data, read_coco, to_coco
from maskrcnn.data.keypoint_names import mirrored_pairs
from maskrcnn.data.transforms import Sample, crop, flip_horizontal, flip_vertical, resize, rotate90
from maskrcnn.presets.detectron2 import COCO_FLIP_PAIRS, COCO_KEYPOINTS
from maskrcnn.structures import GroundTruth

NAMES = ["nose", "left_ear", "right_ear"]


def content() -> dict[str, Any]:
    """Two pictures of 20 x 30; the second has an animal without key points, none has a mask."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2)],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 4, "bbox": [2, 2, 6, 6], "num_keypoints": 2,
             "keypoints": [3, 4, 2, 7.5, 4, 1, 0, 0, 0]},
            {"id": 12, "image_id": 2, "category_id": 4, "bbox": [2, 2, 6, 6]},
        ],
        "categories": [{"id": 4, "name": "cat", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3], [2, 9]]}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (1, 2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{i}.png")
    return tmp_path


def data_of(folder: Path, content: dict[str, Any]) -> CocoData:
    (folder / "train.json").write_text(json.dumps(content))
    return read_coco(folder / "train.json").without_masks()


class TestData:
    def test_says_what_its_key_points_are(self, folder: Path) -> None:
        data = data_of(folder, content())
        assert data.num_keypoints == 3
        assert data.keypoint_names == tuple(NAMES)
        assert data.skeleton == ((0, 1), (0, 2))  # from 0, and only of points that there are
        assert data.num_visible_keypoints.tolist() == [2, 0]

    def test_gives_them_with_the_objects(self, folder: Path) -> None:
        data = data_of(folder, content())
        truth = data.ground_truth(0)
        assert truth.masks is None
        assert truth.keypoints is not None
        assert truth.keypoints.tolist() == [[[3.5, 4.5, 2], [8, 4.5, 1], [0.5, 0.5, 0]]]
        absent = data.ground_truth(1).keypoints
        assert absent is not None
        assert not absent[..., 2].any()

    def test_counts_them_where_no_category_names_them(self, folder: Path) -> None:
        changed = content()
        del changed["categories"][0]["keypoints"]
        data = data_of(folder, changed)
        assert (data.num_keypoints, data.keypoint_names) == (3, ())

    def test_counts_none_where_there_are_none(self, folder: Path) -> None:
        changed = content()
        del changed["categories"][0]["keypoints"]
        for annotation in changed["annotations"]:
            annotation.pop("keypoints", None)
        data = data_of(folder, changed)
        assert data.num_keypoints == 0
        assert data.num_visible_keypoints.tolist() == [0, 0]
        assert data.keypoints(0).shape == (1, 0, 3)

    def test_needs_masks_only_for_models_that_have_them(self, folder: Path) -> None:
        without = data_of(folder, content())
        assert without.num_objects.tolist() == [1, 1]
        assert without.subset([0]).num_objects.tolist() == [1]
        with_masks = read_coco(without.json_path)
        assert with_masks.num_objects.tolist() == [0, 0]

    def test_comes_back_from_its_json(self, folder: Path) -> None:
        data, _ = checked(data_of(folder, content()))
        again = data_of(folder, to_coco(data))
        assert again.keypoint_names == data.keypoint_names
        assert again.skeleton == data.skeleton
        for i in range(2):
            assert (again.keypoints(i) == data.keypoints(i)).all()

    def test_of_coco_is_found_for_models_with_key_points(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            (tmp_path / f"{part}2017").mkdir()
            Image.new("RGB", (30, 20)).save(tmp_path / f"{part}2017" / "1.png")
            for kind in ("instances", "person_keypoints"):
                path = tmp_path / "annotations" / f"{kind}_{part}2017.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps({**content(), "images": content()["images"][:1]}))
        train, val = find_data(tmp_path, keypoints=True)
        assert val is not None
        assert [s.labels.name for s in (train, val)] == [
            "person_keypoints_train2017.json",
            "person_keypoints_val2017.json",
        ]
        assert [s.images.name for s in (train, val)] == ["train2017", "val2017"]
        assert find_data(tmp_path).train.labels.name == "instances_train2017.json"


class TestChecks:
    @pytest.mark.parametrize(
        ("changes", "kind", "message", "kept"),
        [
            ({"keypoints": [3, 4, 2]}, "keypoints_broken", "3 numbers for the 3 key points, not 9", []),
            ({"keypoints": ["a"] * 9}, "keypoints_broken", "1 numbers for the 3 key points, not 9", []),
            ({"keypoints": [3, 4, 2, float("inf"), 4, 1, 0, 0, 0]}, "keypoints_broken", "not finite", []),
            ({"keypoints": [3, 4, 3, 7, 4, 1, 0, 0, 0], "num_keypoints": 2}, "keypoint_visibility",
             "key point 1 has visibility 3.0, not 0, 1 or 2", [1]),
            ({"keypoints": [3, 4, 2, 7, 22, 1, 0, 0, 0]}, "keypoint_outside",
             "key point 2 at (7, 22) is not in the image", [0]),
            ({"num_keypoints": 3}, "keypoint_count", "num_keypoints is 3, but 2 are visible", [0, 1]),
        ],
    )  # fmt: skip
    def test_find_and_repair_broken_ones(
        self, folder: Path, changes: dict[str, Any], kind: str, message: str, kept: list[int]
    ) -> None:
        changed = copy.deepcopy(content())
        changed["annotations"][0].update(changes)
        repaired, report = checked(data_of(folder, changed))
        assert list(report.counts) == [kind]
        finding = next(report.findings())
        assert message in finding.message
        assert (finding.image_id, finding.annotation_id) == (1, 11)
        assert repaired.num_objects.tolist() == [1, 1]
        assert np.flatnonzero(repaired.keypoints(0)[0, :, 2]).tolist() == kept
        assert repaired.num_visible_keypoints[0] == len(kept)

    def test_find_nothing_in_sound_ones(self, folder: Path) -> None:
        assert not len(checked(data_of(folder, content()))[1])

    def test_leave_out_an_object_that_has_neither_box_nor_mask(self, folder: Path) -> None:
        changed = content()
        del changed["annotations"][1]["bbox"]
        repaired, report = checked(data_of(folder, changed))
        assert report.counts == {"box_missing": 1}
        assert repaired.num_objects.tolist() == [1, 0]


PAIRS = ((1, 2),)


def marked() -> Sample:
    """Make a picture in which point k is the middle of the one pixel of value 80 + 60 k."""
    image = torch.zeros(3, 24, 40, dtype=torch.uint8)
    places = [(5, 3), (30, 10), (17, 20)]
    for k, (x, y) in enumerate(places):
        image[:, y, x] = 80 + 60 * k
    points = torch.tensor([[[x + 0.5, y + 0.5, 2] for x, y in places]])
    return image, GroundTruth(torch.tensor([[3.0, 2, 33, 22]]), torch.tensor([0]), keypoints=points)


@pytest.mark.parametrize(
    ("transform", "mirrors"),
    [
        (lambda i, t: flip_horizontal(i, t, PAIRS), True),
        (lambda i, t: flip_vertical(i, t, PAIRS), True),
        (lambda i, t: rotate90(i, t, 1), False),
        (lambda i, t: rotate90(i, t, 2), False),
        (lambda i, t: rotate90(i, t, 3), False),
        (lambda i, t: crop(i, t, (2, 4), (21, 33)), False),
        (lambda i, t: flip_horizontal(*crop(*rotate90(i, t), (3, 1), (34, 22)), PAIRS), True),
    ],
    ids=["mirror", "upside down", "quarter", "half", "three quarters", "crop", "all"],
)
def test_points_stay_on_what_they_mark(
    transform: Callable[[torch.Tensor, GroundTruth], Sample], mirrors: bool
) -> None:
    image, truth = transform(*marked())
    assert truth.keypoints is not None
    found = [int(image[0, int(y), int(x)]) for x, y, _ in truth.keypoints[0].tolist()]
    assert found == ([80, 200, 140] if mirrors else [80, 140, 200])
    assert (truth.keypoints[..., :2] % 1 == 0.5).all()
    assert (truth.keypoints[..., 2] == 2).all()


def test_points_are_resized_with_their_picture() -> None:
    _, truth = resize(*marked(), (48, 60))
    assert truth.keypoints is not None
    assert truth.keypoints[0, 0].tolist() == [5.5 * 1.5, 3.5 * 2, 2]


def test_points_that_are_cropped_away_become_invisible() -> None:
    _, truth = crop(*marked(), (0, 0), (15, 40))
    assert truth.keypoints is not None
    assert truth.keypoints[0, :, 2].tolist() == [2, 2, 0]


def test_two_mirrorings_give_back_the_points() -> None:
    image, truth = marked()
    _, twice = flip_horizontal(*flip_horizontal(image, truth, PAIRS), PAIRS)
    assert (twice.keypoints == truth.keypoints).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (COCO_KEYPOINTS, COCO_FLIP_PAIRS),
        (["LShoulder", "RShoulder", "l_hip", "r_hip", "Neck"], ((0, 1), (2, 3))),
        (["eye left", "tail", "Eye Right", "left wing"], ((0, 2),)),
        (["leftEye", "rightEye"], ((0, 1),)),
        (["ball", "roof", "lower", "rower"], ()),
        ([], ()),
    ],
)
def test_left_and_right_are_known_by_their_names(
    names: list[str], pairs: tuple[tuple[int, int], ...]
) -> None:
    assert mirrored_pairs(names) == pairs
