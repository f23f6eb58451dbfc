"""`maskrcnn doctor`: what is in a data set, what is wrong with it, and whether training would take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskrcnn.cli.main import main

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    box = {"image_id": 1, "category_id": 4, "bbox": [2, 2, 6, 6], "segmentation": SQUARE}
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}],
        "annotations": [{"id": 10 + k, **box} for k in range(15)],
        "categories": [{"id": 4, "name": "cell"}],
    }


def doctor(folder: Path, content: dict[str, Any], *options: str) -> int:
    (folder / "train.json").write_text(json.dumps(content))
    return main(["doctor", "--data", str(folder), *options])


def test_a_sound_set(tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(tmp_path, content) == 0
    out = capsys.readouterr().out
    assert "1 images (0 without objects), 15 annotations (0 crowd regions), 1 class\n" in out
    assert "classes: cell 15\n" in out
    assert "usable: as it is" in out


def test_a_set_of_boxes_and_key_points_alone_is_sound(
    tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for a in content["annotations"]:
        del a["segmentation"]
        a["keypoints"] = [3, 3, 2, 5, 5, 0]
    assert doctor(tmp_path, content) == 0
    out = capsys.readouterr().out
    assert "key points: 2; 15 objects have visible ones\n" in out
    assert "usable: as it is" in out


def test_repairable_defects_are_listed_and_do_not_fail(
    tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for a in content["annotations"][:12]:
        a["bbox"] = [2, 2, 0, 0]
    assert doctor(tmp_path, content) == 0
    out = capsys.readouterr().out
    assert "zero_area: 12 (the object is left out)" in out
    assert "image 1, annotation 19: its bbox [2, 2, 0, 0] has no area in the image" in out
    assert "annotation 20" not in out
    assert "... and 2 more" in out
    assert "usable: 1 images and 3 objects" in out
    assert doctor(tmp_path, content, "--limit", "0") == 0
    assert "annotation 21" in capsys.readouterr().out


def test_a_set_that_training_would_refuse_fails(
    tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").write_text("no picture")
    assert doctor(tmp_path, content) == 1
    assert "image_unreadable: 1 (the image is left out)" in capsys.readouterr().out
    assert doctor(tmp_path, content, "--no-files") == 0
    content["annotations"] = []
    assert doctor(tmp_path, content, "--no-files") == 1
    assert "refused" in capsys.readouterr().out


def test_a_folder_without_data_is_a_mistake_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--data", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no data set found" in captured.err
    assert captured.err.count("\n") == 1


def test_what_is_worth_a_look_does_not_fail(
    tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["bbox"] = [2, 2, 6, 11]
    content["categories"].append({"id": 9, "name": "dust"})
    Image.new("RGB", (30, 20)).save(tmp_path / "2.png")
    val = {**content, "images": [{**content["images"][0], "file_name": "2.png"}]}
    (tmp_path / "val.json").write_text(json.dumps(val))
    assert doctor(tmp_path, content) == 0
    out = capsys.readouterr().out
    assert "box_loose: 1 (the box is kept as it is)" in out
    assert "'dust' has no object" in out
    assert "in_both_parts: 1" in out
    assert "image 1: 2.png is 1.png of training" in out
    assert doctor(tmp_path, content, "--no-files") == 0
    assert "in_both_parts" not in capsys.readouterr().out


def test_a_page_with_the_worst_drawn(tmp_path: Path, content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "<cell>"
    content["annotations"][0] |= {"id": 1, "bbox": [20, 2, 6, 6]}
    content["annotations"][1] |= {"id": 2, "segmentation": [[2, 2, 8, 2]]}
    content["annotations"][2] |= {"id": 3, "category_id": 5}
    content["annotations"][3] |= {"id": 4, "segmentation": {"size": [20, 30], "counts": "broken"}}
    content["annotations"][4] |= {"id": 5, "segmentation": {"size": [20, 30], "counts": [42, 6, 552]}}
    content["annotations"] = content["annotations"][:6]
    content["images"].append({"id": 2, "file_name": "gone.png", "height": 4, "width": 4})
    out = tmp_path / "out"
    assert doctor(tmp_path, content, "--out", str(out)) == 0
    page = (out / "index.html").read_text()
    kinds = ("image missing", "unknown category", "polygon broken", "rle broken")
    assert all(f"train: {kind} (1)" in page for kind in kinds)
    assert "train: box differs (2)" in page
    assert page.count("<img ") >= 4
    assert "http" not in page


def test_other_formats_and_both_ways_to_name_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    shape = {"label": "cell", "points": [[2, 2], [8, 2], [8, 8]], "shape_type": "polygon"}
    (tmp_path / "1.json").write_text(json.dumps({"shapes": [shape], "imagePath": "1.png"}))
    for words in ([str(tmp_path)], ["--data", str(tmp_path)], [str(tmp_path), "--format", "labelme"]):
        assert main(["doctor", *words]) == 0
        assert "(labelme)" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path), "--format", "voc"]) == 2
    assert "Looked for Pascal VOC" in capsys.readouterr().err
    assert main(["doctor"]) == 2
    assert "expected one data set" in capsys.readouterr().err
