"""Data sets as people have them: other encodings, junk files, odd values, files elsewhere. Each is read, or told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.cli.main import main
from maskrcnn.data import find_data, read_data
from maskrcnn.data.quality.check import check
from maskrcnn.errors import UserError
from tests.data.label_files import (
    HEIGHT,
    WIDTH,
    defects,
    label_map,
    labelme,
    objects,
    picture,
    training_part,
    write_json,
    write_text,
)
from tests.valid_sets import READERS, place, valid

SQUARE = [[10, 5], [30, 5], [30, 15], [10, 15]]
LINE = "0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n"  # 15, 10, 30, 20 of WIDTH x HEIGHT


# --- junk files


@pytest.mark.parametrize("reader", READERS)
def test_files_of_the_system_change_nothing(tmp_path: Path, reader: str) -> None:
    files = valid(reader)
    place(files, tmp_path / "clean")
    junk = {str(Path(n).with_name(f"._{Path(n).name}")): b"\0\x05\x16\x07 Mac OS X" for n in files}
    junk |= {str(Path(n).with_name(name)): b"\0\xff" for n in files for name in ("Thumbs.db", ".DS_Store")}
    junk |= {f"__MACOSX/{n}": b"\0\x05\x16\x07" for n in files}
    junk |= {f".ipynb_checkpoints/{n}": content for n, content in files.items()}
    place(files | junk, tmp_path / "junk")
    clean, beside = (training_part(tmp_path / name) for name in ("clean", "junk"))
    assert objects(clean) == objects(beside) != []
    assert defects(beside) == {}


# --- text files


def yolo(
    folder: Path, yaml: str = "train: images\nnames: [grün, rot]\n", *, label: str = "labels/a.txt"
) -> None:
    picture(folder / "images" / "a.jpg")
    write_text(folder / "data.yaml", yaml)
    write_text(folder / label, LINE)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_yolo_files_in_other_encodings_lose_nothing(tmp_path: Path, encoding: str) -> None:
    yolo(tmp_path)
    for path in (tmp_path / "data.yaml", tmp_path / "labels" / "a.txt"):
        path.write_bytes(path.read_text().encode(encoding))
    assert objects(training_part(tmp_path)) == [("images/a.jpg", "grün", [15, 10, 30, 20], 150)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_voc_lists_and_names_in_other_encodings_lose_nothing(tmp_path: Path, encoding: str) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        for kind in ("Object", "Class"):
            label_map(tmp_path / f"Segmentation{kind}" / f"{name}.png", np.eye(HEIGHT, WIDTH, dtype=np.uint8))
    (tmp_path / "labels.txt").write_bytes("_background_\ngrün\n".encode(encoding))
    write_text(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_bytes("a\nb\n".encode(encoding))
    data = training_part(tmp_path)
    assert [o[:2] for o in objects(data)] == [("a", "grün"), ("b", "grün")]


def test_labelme_files_in_utf_16_and_names_in_windows_1252(tmp_path: Path) -> None:
    labelme(tmp_path, {"label": "grün", "points": SQUARE})
    (tmp_path / "labels.txt").write_bytes("rot\ngrün\n".encode("cp1252"))
    path = tmp_path / "a.json"
    path.write_bytes(path.read_text().replace("\\u00fc", "ü").encode("utf-16"))
    assert find_data(tmp_path, format="labelme").train.format == "labelme"
    data = training_part(tmp_path)
    assert (data.class_names, len(objects(data))) == (("rot", "grün"), 1)


# --- YOLO


def test_a_yolo_part_may_be_one_picture(tmp_path: Path) -> None:
    yolo(tmp_path, "train: images/a.jpg\nnames: [cat]\n")
    picture(tmp_path / "images" / "b.jpg")
    assert [o[0] for o in objects(training_part(tmp_path))] == ["images/a.jpg"]


@pytest.mark.parametrize(("word", "label"), [("0.0", 0), ("1.000000", 1), ("01", 1), ("1e0", 1)])
def test_a_yolo_class_may_be_written_as_a_float(tmp_path: Path, word: str, label: int) -> None:
    yolo(tmp_path)
    write_text(tmp_path / "labels" / "a.txt", word + LINE[1:])
    data = training_part(tmp_path)
    assert data.arrays["labels"].tolist() == [label]


@pytest.mark.parametrize("word", ["0.5", "-1", "nan", "inf", "1e30", "²", "cat", "9" * 5000, "70000"])
def test_a_yolo_class_that_is_no_number_of_a_class_is_told(tmp_path: Path, word: str) -> None:
    yolo(tmp_path)
    write_text(tmp_path / "labels" / "a.txt", word + LINE[1:])
    assert defects(training_part(tmp_path)) == {"unknown_category": 1}
    (tmp_path / "data.yaml").unlink()
    assert len(training_part(tmp_path).class_names) == 1  # and not as many as the number says


@pytest.mark.parametrize("yaml", [True, False])
def test_yolo_pictures_in_subfolders_are_read(tmp_path: Path, yaml: bool) -> None:
    yolo(tmp_path, "train: images/train\nnames: [cat]\n")
    for camera in ("left", "right"):
        picture(tmp_path / "images" / "train" / camera / "a.jpg")
        write_text(tmp_path / "labels" / "train" / camera / "a.txt", LINE)
    if not yaml:
        (tmp_path / "data.yaml").unlink()
    names = [o[0] for o in objects(training_part(tmp_path))]
    assert names == [f"images/train/{camera}/a.jpg" for camera in ("left", "right")]


@pytest.mark.parametrize("label", ["images/a.txt", "labels_seg/a.txt", "annotations/a.txt"])
def test_yolo_labels_beside_the_pictures_or_in_another_folder_are_read(tmp_path: Path, label: str) -> None:
    yolo(tmp_path, label=label)
    assert objects(training_part(tmp_path)) == [("images/a.jpg", "grün", [15, 10, 30, 20], 150)]


def test_yolo_labels_in_several_other_folders_are_too_much_to_choose_from(tmp_path: Path) -> None:
    yolo(tmp_path, label="labels_seg/a.txt")
    write_text(tmp_path / "labels_box" / "a.txt", "0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(
        UserError, match=r"expected label files in one folder, found .*labels_box, .*labels_seg"
    ):
        training_part(tmp_path)
    write_text(tmp_path / "labels" / "a.txt", LINE)
    assert len(objects(training_part(tmp_path))) == 1


def test_yolo_pictures_without_labels_take_no_others_than_those_of_labels(tmp_path: Path) -> None:
    """A part without objects beside one with some: background pictures."""
    yolo(tmp_path, "train: images\nval: images/val\nnames: [cat]\n")
    picture(tmp_path / "images" / "val" / "b.jpg")
    write_text(tmp_path / "labels_box" / "val" / "b.txt", LINE)
    val = find_data(tmp_path).val
    assert val is not None
    assert read_data(val).num_objects.tolist() == [0]


@pytest.mark.parametrize("names", ["{x: cat}", "{-1: cat}", "{0: a, 1e30: b}"])
def test_yolo_names_by_what_is_no_number_are_refused(tmp_path: Path, names: str) -> None:
    yolo(tmp_path, f"train: images\nnames: {names}\n")
    with pytest.raises(UserError, match="names: expected a list, or names by number"):
        training_part(tmp_path)


def test_file_names_that_are_no_utf_8_are_found(tmp_path: Path) -> None:
    labelme(tmp_path, {"label": "cat", "points": SQUARE})
    try:
        for end in (b".png", b".json"):
            os.rename(os.fsencode(tmp_path / "a") + end, os.fsencode(tmp_path) + b"/caf\xe9" + end)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = training_part(tmp_path)
    assert defects(data) == {}
    assert objects(data) == [("caf?.png", "cat", [10, 5, 30, 15], 200)]
    for verb in ("doctor", "view"):
        assert main([verb, str(tmp_path), "--out", str(tmp_path / verb)]) == 0
        assert (tmp_path / verb / "index.html").is_file()


# --- LabelMe


def test_labelme_rotated_rectangles_are_polygons_and_ignore_is_no_class(tmp_path: Path) -> None:
    labelme(
        tmp_path,
        {"label": "cat", "shape_type": "rotation", "points": SQUARE, "direction": 0.3},
        {"label": "__ignore__", "points": SQUARE},
        {"label": "_background_", "points": SQUARE},
    )
    data = training_part(tmp_path)
    assert (data.class_names, objects(data)) == (("cat",), [("a.png", "cat", [10, 5, 30, 15], 200)])
    assert defects(data) == {}


# --- odd members: a finding, or a line


@pytest.mark.parametrize(
    ("shape", "finding"),
    [
        (None, {"unknown_category": 1, "polygon_broken": 1}),
        ({"label": "cat"}, {"polygon_broken": 1}),
        ({"label": "cat", "points": None}, {"polygon_broken": 1}),
        ({"label": "cat", "points": "0123"}, {"polygon_broken": 1}),
        ({"label": "cat", "points": [[10**400, 1], [2, 3], [4, 5]]}, {"polygon_broken": 1}),
        ({"label": "cat", "points": [[1e30, 1], [2, 3], [4, 5]]}, {"polygon_broken": 1}),
        ({"label": {"x": 1}, "points": SQUARE}, {"unknown_category": 1}),
        ({"label": "cat", "points": SQUARE, "group_id": []}, {}),
        ({"label": "cat", "points": SQUARE, "group_id": {"x": 1}}, {}),
        ({"label": "cat", "shape_type": "mask", "points": SQUARE, "mask": 3}, {"polygon_broken": 1}),
        ({"label": "cat", "shape_type": "mask", "points": [], "mask": ""}, {"polygon_broken": 1}),
        ({"label": "cat", "shape_type": ["mask"], "points": SQUARE}, {"mask_absent": 1}),
    ],
)
def test_an_odd_labelme_shape_is_a_finding(tmp_path: Path, shape: Any, finding: dict[str, int]) -> None:
    labelme(tmp_path, {"label": "cat", "points": SQUARE}, shape)
    data = training_part(tmp_path)
    assert defects(data) == finding
    assert check(data).usable().num_objects.sum() == (1 if finding else 2)


@pytest.mark.parametrize(
    ("region", "finding"),
    [
        (None, {"unknown_category": 1}),
        ({"shape_attributes": "rect", "region_attributes": {"class": "red"}}, {"polygon_broken": 1}),
        ({"shape_attributes": {"name": "rect", "x": 1}, "region_attributes": "red"}, {"unknown_category": 1}),
        ({"shape_attributes": {"name": ["rect"]}, "region_attributes": {"class": "red"}}, {"mask_absent": 1}),
        (
            {"shape_attributes": {"name": "circle", "cx": 1e30, "cy": 2, "r": 3}}
            | {"region_attributes": {"class": "red"}},
            {"polygon_broken": 1},
        ),
        (
            {"shape_attributes": {"name": "polygon", "all_points_x": "123", "all_points_y": "456"}}
            | {"region_attributes": {"class": "red"}},
            {"polygon_broken": 1},
        ),
    ],
)
def test_an_odd_via_region_is_a_finding(tmp_path: Path, region: Any, finding: dict[str, int]) -> None:
    picture(tmp_path / "a.png")
    good = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 20, "height": 20}}
    regions = [good | {"region_attributes": {"class": "red"}}, region]
    write_json(tmp_path / "x.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": regions}})
    data = training_part(tmp_path)
    found = defects(data)
    assert found.items() >= finding.items()
    assert check(data).usable().num_objects.tolist() == [1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"filename": 3, "size": 1, "regions": []}, "expected an object with a filename"),
        ({"filename": "a.png", "size": 1, "regions": 3}, "expected a list of regions"),
        ({"filename": {"a": "b"}, "size": 1, "regions": []}, "expected an object with a filename"),
    ],
)
def test_an_odd_via_entry_is_one_line(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    picture(tmp_path / "a.png")
    write_json(tmp_path / "x.json", {"a.png1": entry})
    with pytest.raises(UserError, match=message):
        training_part(tmp_path)


@pytest.mark.parametrize(
    ("odd", "finding"),
    [
        (None, {"unknown_category": 1, "mask_absent": 1}),
        ({"label": "cell", "polygon": None}, {"polygon_broken": 1}),
        ({"label": "cell", "polygon": [["a", 1], [9, 1], [9, 9]]}, {"polygon_broken": 1}),
        ({"label": "cell", "polygon": [[1], [9, 1], [9, 9]]}, {"polygon_broken": 1}),
        ({"label": ["cell"], "polygon": SQUARE}, {"unknown_category": 1}),
    ],
)
@pytest.mark.parametrize("size", [{"imgHeight": HEIGHT}, {"imgHeight": "40", "imgWidth": None}, {}])
def test_an_odd_cityscapes_object_is_a_finding(
    tmp_path: Path, odd: Any, finding: dict[str, int], size: dict[str, Any]
) -> None:
    picture(tmp_path / "a.png")
    content = {**size, "objects": [{"label": "cell", "polygon": SQUARE}, odd]}
    write_json(tmp_path / "a_polygons.json", content)
    data = training_part(tmp_path)
    assert defects(data) == finding
    assert check(data).usable().num_objects.tolist() == [1]


# --- the collected cases themselves


@pytest.mark.parametrize(
    ("name", "images", "per_class"),
    [
        ("65-xanylabeling-rotation", 4, {"blue": 4, "red": 4}),
        ("70-labelme-mask-window", 4, {"blue": 8, "red": 4}),
        ("73-labelme-ignore-label", 4, {"red": 4}),
        ("83-yolo-bom-label", 4, {"red": 4, "blue": 4}),
        ("84-yolo-float-class", 4, {"red": 4, "blue": 4}),
        ("89-yolo-images-in-subfolders", 8, {"red": 8, "blue": 8}),
        ("90-yolo-txt-beside-images", 4, {"red": 4, "blue": 4}),
        ("99-yolo-all-labels-elsewhere", 4, {"red": 4, "blue": 4}),
        ("100-yolo-latin1-classes", 4, {"grün": 4, "rot": 4}),
        ("121-dsb-jpg-masks", 3, {"object": 6}),
        ("124-dsb-mask-rgba-transparent", 3, {"object": 6}),
        ("142-label-txt-utf16", 4, {"red": 4, "blue": 4}),
        ("150-appledouble-labelme", 4, {"blue": 4, "red": 4}),
        ("172-yolo-train-is-one-image", 1, {"red": 1, "blue": 1}),
    ],
)
def test_a_collected_case_is_read_whole(
    shared: Path, name: str, images: int, per_class: dict[str, int]
) -> None:
    folder = shared / "cases" / "datasets" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = read_data(find_data(folder).train)
    counts = np.bincount(data.arrays["labels"], minlength=len(data.class_names)).tolist()
    assert (data.num_images, dict(zip(data.class_names, counts, strict=True))) == (images, per_class)
    assert defects(data) == {}
