"""COCO JSONs with members of other types than COCO's: read for what they mean, or told; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.cli.main import main
from maskrcnn.data import CocoData, read_coco
from maskrcnn.data.coco_arrays import category_name, find_id, is_crowd
from maskrcnn.data.quality.check import check
from maskrcnn.data.quality.defects import REFUSED, RULES
from maskrcnn.evaluation.scores import evaluate_results
from maskrcnn.evaluation.truth import load_truth
from tests.data.label_files import picture, write_json

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def content(*annotations: dict[str, Any], names: tuple[str, ...] = ("red", "blue")) -> dict[str, Any]:
    """Annotation file of two pictures with one object each, whose members `annotations` change."""
    found = []
    for k, changes in enumerate(annotations or ({}, {}), start=1):
        plain = {"id": k, "image_id": k, "category_id": k, "segmentation": SQUARE, "bbox": [2, 2, 6, 6]}
        found.append(plain | {"iscrowd": 0, "area": 36} | changes)
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in (1, 2)],
        "annotations": found,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }


def written(folder: Path, content: dict[str, Any]) -> CocoData:
    for k in (1, 2):
        picture(folder / f"{k}.png")
    return read_coco(write_json(folder / "a.json", content))


@pytest.mark.parametrize(
    ("value", "crowd", "odd"),
    [
        (0, False, False), (1, True, False), (False, False, False), (True, True, False), (0.0, False, False),
        (1.0, True, False), (None, False, False), ("0", False, True), ("false", False, True), ("1", True, True),
        ("True", True, True), ("", False, True), (2, False, True), ([1], False, True), ({}, False, True),
    ],
)  # fmt: skip
def test_iscrowd_is_0_or_1_or_told(tmp_path: Path, value: Any, crowd: bool, odd: bool) -> None:
    given = content({}, {"iscrowd": value}, {"image_id": 2, "category_id": 2})
    data = written(tmp_path, given)
    assert data.arrays["crowd"].tolist() == [False, crowd, False]
    findings = [f for f in check(data).findings() if f.kind == "crowd_odd"]
    assert [f.annotation_id for f in findings] == [2] * odd
    if odd:
        assert repr(value) in findings[0].message
        assert findings[0].message.endswith("taken for a crowd" if crowd else "taken for no crowd")
    scored = load_truth(given).for_scoring("bbox")["annotations"]
    assert [a["iscrowd"] for a in scored] == [0, int(crowd), 0]
    assert is_crowd(value) is crowd


def test_a_class_of_crowds_is_told(tmp_path: Path) -> None:
    found = list(check(written(tmp_path, content({}, {"iscrowd": 1}))).findings())
    assert [f.line for f in found] == ["'blue' has 1 crowd regions (iscrowd 1) and 0 objects"]
    assert "nothing learns" in found[0].rule


@pytest.mark.parametrize("ids", [("1", "2"), (1.0, 2.0), (1, "2")])
@pytest.mark.parametrize("member", ["image_id", "category_id"])
def test_an_id_is_the_same_as_text_and_as_a_number(tmp_path: Path, member: str, ids: tuple[Any, Any]) -> None:
    given = content(*({member: i} for i in ids))
    data = written(tmp_path, given)
    assert data.num_objects.tolist() == [1, 1]
    assert [data.ground_truth(i).labels.tolist() for i in (0, 1)] == [[0], [1]]
    assert len(check(data)) == 0
    results = [
        {"image_id": k, "category_id": str(k), "score": 0.9, "bbox": [2, 2, 6, 6]} for k in (1, 2)
    ]  # text here too
    assert evaluate_results(load_truth(given), results, ["bbox"]).numbers["bbox"]["AP"] == pytest.approx(1.0)


def test_image_ids_as_text_and_categories_with_text_for_ids(tmp_path: Path) -> None:
    given = content()
    for entry in given["images"] + given["categories"]:
        entry["id"] = str(entry["id"])
    data = written(tmp_path, given)
    assert data.image_ids.tolist() == ["1", "2"]
    assert (data.category_ids, data.num_objects.tolist()) == ((1, 2), [1, 1])
    assert len(load_truth(given).annotations) == 2


def test_other_texts_are_no_numbers() -> None:
    known = {1: "one", "x": "ex"}
    for value, expected in ((1, "one"), ("1", "one"), ("x", "ex"), ("1.5", None), ("", None), ("²", None)):
        assert find_id(known, value, None) == expected
    assert find_id(known, "9" * 5000, None) is None


@pytest.mark.parametrize("verb", ["doctor", "view", "train", "evaluate"])
def test_a_set_without_categories_is_one_line(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "set", content(names=()))
    words = {
        "doctor": [],
        "view": ["--out", str(tmp_path / "out")],
        "train": [
            "--model",
            "mask_rcnn_mobilenet_v2_FPN",
            "--weights",
            "none",
            "--out",
            str(tmp_path / "run"),
        ],
        "evaluate": ["--results", str(write_json(tmp_path / "results.json", []))],
    }[verb]
    data = [str(tmp_path / "set")] if verb in ("doctor", "view") else ["--data", str(tmp_path / "set")]
    assert main([verb, *data, *words]) == {"doctor": 1, "view": 0}.get(verb, 2)
    said = capsys.readouterr()
    assert "no_classes" in said.out + said.err
    assert said.err.count("\n") <= (3 if verb == "evaluate" else 1)
    assert RULES["no_classes"] == REFUSED


def test_names_are_one_line_of_text(tmp_path: Path) -> None:
    for name, expected in ((None, "3"), ("", "3"), ([], "3"), (7, "7"), ("a\nb", "a b"), ("\ud800", "?")):
        assert category_name({"id": 3, "name": name}) == expected
    assert category_name({"id": 3}) == "3"
    twice = written(tmp_path, content(names=("red", "red")))
    assert [f.line for f in check(twice).findings()] == ["'red' is the name of the categories [1, 2]"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("images", {"file_name": ["a"]}), ("images", {"file_name": None}), ("images", {"file_name": "\ud800.png"}),
        ("images", {"file_name": "\0"}), ("images", {"file_name": "a" * 5000}), ("images", {"height": "40"}),
        ("categories", {"keypoints": 1, "skeleton": 1}), ("categories", {"keypoints": [], "skeleton": [[[], 1]]}),
        ("annotations", {"area": "x", "bbox": {}, "num_keypoints": []}), ("annotations", {"keypoints": [None]}),
        ("annotations", {"image_id": []}), ("annotations", {"category_id": {}}), ("annotations", {"id": "\ud800"}),
    ],
)  # fmt: skip
def test_other_odd_members_are_findings(tmp_path: Path, member: str, value: dict[str, Any]) -> None:
    given = content({}, {}, {"image_id": 2, "category_id": 2})
    given[member][0] |= value
    report = check(written(tmp_path, given))
    assert report.usable().num_objects.sum() >= 1
    for line in report.lines():
        line.encode()


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("08-string-image-id-in-annotations", {}),
        ("169-pylabel-text-category", {}),
        ("26-iscrowd-text-false", {"crowd_odd": 8}),
        ("34-category-names-twice", {"class_twice": 1}),
        ("180-v7-empty-categories", {"no_annotations": 1, "no_classes": 1}),
    ],
)
def test_reported_files(shared: Path, case: str, counts: dict[str, int]) -> None:
    folder = shared / "cases" / "datasets" / case
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    (path,) = folder.glob("*.json")
    data = read_coco(path, folder / "images")
    report = check(data)
    assert report.counts == counts
    assert report.refused or report.usable().num_objects.tolist() == [2, 2, 2, 2]
    assert json.loads(path.read_text())["images"]
