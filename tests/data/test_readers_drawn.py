"""Formats with drawn shapes: VGG Image Annotator, LabelMe, YOLO."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data import find_data, read_data
from maskrcnn.data.quality.check import check
from maskrcnn.data.readers.yolo import read_yaml
from maskrcnn.errors import UserError
from tests.data.label_files import defects, objects, picture, training_part, write_json, write_text

SQUARE = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [5, 5, 15, 15]}
RECT = {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 10}
CIRCLE = {"name": "circle", "cx": 30, "cy": 20, "r": 10}
ELLIPSE = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 20, "ry": 10, "theta": 0}


def via_entry(name: str, shapes: list[dict[str, Any]], *, version: int = 2, attribute: str = "name") -> Any:
    regions = [
        {"shape_attributes": s, "region_attributes": {attribute: s.get("class", "dent")}} for s in shapes
    ]
    held = dict(zip("012345", regions)) if version == 1 else regions
    first = {"fileref": "", "size": 7} if version == 1 else {"size": 7}
    return {f"{name}7": {**first, "filename": name, "regions": held, "file_attributes": {}}}


# --- VGG Image Annotator


@pytest.mark.parametrize("version", [1, 2])
def test_via_shapes_become_masks(tmp_path: Path, version: int) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "empty.png")
    shapes = [SQUARE, RECT | {"class": "scratch"}, CIRCLE, ELLIPSE]
    content = via_entry("a.png", shapes, version=version) | via_entry("empty.png", [], version=version)
    write_json(tmp_path / "via_region_data.json", content)
    write_json(tmp_path / "settings.json", {"model": {"size": 3}})  # not everything beside it is VIA's
    data = training_part(tmp_path)
    assert data.class_names == ("dent", "scratch")
    assert data.image_ids.tolist() == ["a.png", "empty.png"]
    assert data.num_objects.tolist() == [4, 0]
    found = objects(data)
    assert found[0] == ("a.png", "dent", [10, 5, 30, 15], 200)
    assert found[1] == ("a.png", "scratch", [10, 5, 30, 15], 200)
    assert found[2][2] == pytest.approx([20, 10, 40, 30])
    assert found[2][3] == pytest.approx(math.pi * 100, rel=0.03)
    assert found[3][3] == pytest.approx(math.pi * 200, rel=0.03)
    assert defects(data) == {}


def test_via_project_file(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    content = {"_via_settings": {"ui": {}}, "_via_img_metadata": via_entry("a.png", [SQUARE])}
    path = write_json(tmp_path / "project.json", content)
    for where in (tmp_path, path):
        data = training_part(where)
        assert objects(data) == [("a.png", "dent", [10, 5, 30, 15], 200)]
        assert data.image_path(0).is_file()


def test_via_version_3(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = {
        "project": {"pid": "x", "vid_list": ["1"]},
        "attribute": {"1": {"aname": "class", "options": {"0": "cat", "1": "dog"}}},
        "file": {"7": {"fid": "7", "fname": "a.png", "loc": 1, "src": "a.png"}},
        "metadata": {
            "1_a": {"vid": "1", "xy": [2, 10, 5, 20, 10], "av": {"1": "1"}},
            "1_b": {"vid": "1", "xy": [7, 10, 5, 30, 5, 30, 15, 10, 15], "av": {"1": "0"}},
            "1_c": {"vid": "1", "xy": [], "av": {"1": "0"}},
        },
        "view": {"1": {"fid_list": ["7"]}},
    }
    write_json(tmp_path / "project.json", content)
    box = [10.0, 5.0, 30.0, 15.0]
    assert objects(training_part(tmp_path)) == [("a.png", "dog", box, 200), ("a.png", "cat", box, 200)]


def test_via_class_attribute(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    regions = [
        {
            "shape_attributes": SQUARE,
            "region_attributes": {"colour": "red", "Class": {"car": True, "bus": False}},
        },
        {"shape_attributes": SQUARE, "region_attributes": {"colour": "red", "Class": {}}},
    ]
    entry = {"a.png7": {"filename": "a.png", "size": 7, "regions": regions}}
    path = write_json(tmp_path / "x.json", entry)
    data = training_part(tmp_path)
    assert data.class_names == ("car",)
    assert defects(data) == {"unknown_category": 1}
    for region in regions:
        region["region_attributes"] = {"colour": "red", "age": "old"}
    write_json(path, entry)
    with pytest.raises(UserError, match=r"for the class; got age, colour\. Rename"):
        training_part(tmp_path)
    for region in regions:
        region["region_attributes"] = {}
    write_json(path, entry)
    assert training_part(tmp_path).class_names == ("object",)


def test_via_defects_are_left_to_the_checks(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    shapes = [SQUARE, {"name": "point", "cx": 3, "cy": 4}, {"name": "polygon", "all_points_x": [1, 2, 3]}]
    write_json(tmp_path / "x.json", via_entry("a.png", shapes) | via_entry("gone.png", [SQUARE]))
    data = training_part(tmp_path)
    found = check(data)
    assert found.counts == {"image_missing": 1, "mask_absent": 1, "polygon_broken": 1}
    first = next(found.findings())
    assert (first.kind, first.image_id) == ("image_missing", "gone.png")
    assert found.usable().num_objects.tolist() == [1]


def test_several_via_files_are_too_much_to_choose_from(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("one.json", "two.json"):
        write_json(tmp_path / name, via_entry("a.png", [SQUARE]))
    with pytest.raises(UserError, match=r"found one.json, two.json\. Give a file's path"):
        find_data(tmp_path)
    write_json(tmp_path / "via_region_data.json", via_entry("a.png", [SQUARE]))
    assert find_data(tmp_path).train.labels.name == "via_region_data.json"
    assert find_data(tmp_path / "two.json").train.labels.name == "two.json"


def test_via_car_damage(shared: Path) -> None:
    train, val = find_data(shared / "data" / "via_car_damage")
    assert val is not None
    sets = [read_data(train), read_data(val, ("damage",))]
    assert [(d.num_images, int(d.num_objects.sum())) for d in sets] == [(62, 152), (8, 12)]
    assert all(d.class_names == ("damage",) and defects(d) == {} for d in sets)


def test_the_validation_part_takes_the_classes_of_the_training_part(tmp_path: Path) -> None:
    for part, names in (("train", "ab"), ("val", "bc")):
        picture(tmp_path / part / "x.png")
        shapes = [SQUARE | {"class": name} for name in names]
        write_json(tmp_path / part / "via_region_data.json", via_entry("x.png", shapes))
    train, val = find_data(tmp_path)
    assert val is not None
    data = read_data(train)
    other = read_data(val, data.class_names)
    assert other.class_names == data.class_names == ("a", "b")
    assert [o[1] for o in objects(other)] == ["b"]
    assert defects(other) == {"unknown_category": 1}


# --- LabelMe


def labelme(image: str, shapes: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "version": "5.4",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": "QUJD" * 9,
        **fields,
    }


def shape(
    label: str, points: list[list[float]], kind: str | None = "polygon", **fields: Any
) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **fields}


def test_labelme_shapes_become_masks(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    bitmap = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(bitmap, "PNG")
    shapes = [
        shape("cat", [[10, 5], [30, 5], [30, 15], [10, 15]]),
        shape("dog", [[30, 15], [10, 5]], "rectangle"),
        shape("dog", [[30, 20], [30, 30]], "circle"),
        shape("cat", [[7, 8], [12, 11]], "mask", mask=base64.b64encode(bitmap.getvalue()).decode()),
        shape("cat", [[1, 1], [2, 2]], "line"),
    ]
    write_json(tmp_path / "a.json", labelme("a.png", shapes, imageHeight=40, imageWidth=60))
    data = training_part(tmp_path)
    assert data.class_names == ("cat", "dog")
    found = objects(data)
    assert found[0] == ("a.png", "cat", [10, 5, 30, 15], 200)
    assert found[1] == ("a.png", "dog", [10, 5, 30, 15], 200)
    assert found[2][3] == pytest.approx(math.pi * 100, rel=0.03)
    assert found[3] == ("a.png", "cat", [7, 8, 13, 12], 24)
    assert defects(data) == {"mask_absent": 1}


def test_labelme_group_is_one_object(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    parts = [[[0, 0], [4, 0], [4, 4], [0, 4]], [[10, 0], [14, 0], [14, 4], [10, 4]]]
    shapes = [shape("cat", p, group_id=1) for p in parts] + [shape("dog", parts[0], group_id=1)]  # pyright: ignore[reportArgumentType]
    write_json(tmp_path / "a.json", labelme("a.png", shapes))
    assert objects(training_part(tmp_path)) == [
        ("a.png", "cat", [0, 0, 14, 4], 32),
        ("a.png", "dog", [0, 0, 4, 4], 16),
    ]


def test_labelme_images_and_parts(tmp_path: Path) -> None:
    """Windows paths, an image elsewhere, no size, the order of the classes in labels.txt, other JSONs between."""
    write_text(tmp_path / "labels.txt", "__ignore__\n_background_\ndog\ncat\n")
    square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    for part in ("train", "val"):
        picture(tmp_path / "pictures" / f"{part}.png")
        picture(tmp_path / part / "b.png")
        given = f"..\\pictures\\{part}.png"
        write_json(tmp_path / part / "a.json", labelme(given, [shape("cat", square)], imageHeight=None))  # pyright: ignore[reportArgumentType]
        write_json(tmp_path / part / "b.json", labelme("renamed.png", []))
        write_json(tmp_path / part / "z.json", {"other": 1})
    train, val = find_data(tmp_path)
    assert val is not None
    assert (train.part, val.part, train.format) == ("train", "val", "labelme")
    data = read_data(train)
    assert data.class_names == ("dog", "cat")
    assert [data.image_path(i).is_file() for i in range(2)] == [True, True]
    assert data.sizes.tolist() == [[40, 60], [40, 60]]
    assert defects(data) == {}


def test_labelme_files_apart_from_their_images(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    write_json(tmp_path / "labels" / "a.json", labelme("../images/a.png", [shape("cat", square)]))  # pyright: ignore[reportArgumentType]
    data = training_part(tmp_path)
    assert data.file_name(0) == "../images/a.png"
    assert defects(data) == {}


def test_a_broken_labelme_file_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write_json(tmp_path / "a.json", labelme("a.png", []))
    path = write_text(tmp_path / "b.json", '{"shapes": [')
    with pytest.raises(UserError, match="not valid JSON") as caught:
        training_part(tmp_path)
    assert str(path) in str(caught.value)


# --- YOLO


LINE = "0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n"


def yolo(folder: Path, yaml: str) -> Path:
    for part in ("train", "val"):
        picture(folder / "images" / part / "a.jpg")
        picture(folder / "images" / part / "nothing.jpg")
        write_text(folder / "labels" / part / "a.txt", LINE + "2 0 0 1 0 1 1\n")
    return write_text(folder / "data.yaml", yaml)


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog  # barks\n  2: 'cow: big'\n",
        'train: ../images/train\nval: ../images/val\nnc: 3\nnames: [cat, dog, "cow: big"]\n',
        "path: /elsewhere/data\ntrain:\n  - images/train\nval: images/val\nnames:\n- cat\n- dog\n- 'cow: big'\n",
        "train: train.txt\nval: images/val\nnames: {0: cat, 1: dog, 2: 'cow: big'}\n",
        "train: images/train\nval: images/val\nnames: ['cat',\n  'dog',\n  'cow: big']\n",
    ],
)
def test_yolo_polygons_and_parts(tmp_path: Path, yaml: str) -> None:
    path = yolo(tmp_path, yaml)
    write_text(tmp_path / "train.txt", "images/train/a.jpg\n./images/train/nothing.jpg\n")
    for where in (tmp_path, path):
        train, val = find_data(where)
        assert val is not None
        data = read_data(train)
        assert data.class_names == ("cat", "dog", "cow: big")
        assert data.category_ids == (0, 1, 2)
        assert data.num_objects.tolist() == [2, 0]
        assert objects(data)[0][1:] == ("cat", [15, 10, 30, 20], 150)
        assert defects(data) == {}
        assert read_data(val).file_name(0) == "images/val/a.jpg"


def test_yolo_without_a_yaml(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        picture(tmp_path / part / "images" / "a.png")
        write_text(tmp_path / part / "labels" / "a.txt", LINE)
    train, val = find_data(tmp_path)
    assert val is not None
    assert read_data(train).class_names == ("class 0",)
    write_text(tmp_path / "classes.txt", "cell\n")
    assert read_data(val).class_names == ("cell",)
    assert objects(read_data(val))[0][1:] == ("cell", [15, 10, 30, 20], 150)


def test_yolo_defects_are_left_to_the_checks(tmp_path: Path) -> None:
    yolo(tmp_path, "train: images/train\nnames: [cat]\n")
    lines = [
        LINE,
        "0 0.5 0.5 0.2 0.2\n",
        "0 zero 1 2\n",
        "7 0 0 1 0 1 1\n",
        "x 0 0 1 0 1 1\n",
        "0 0 0 1 0 1\n",
    ]
    write_text(tmp_path / "labels/train/a.txt", "".join(lines))
    data = training_part(tmp_path)
    assert defects(data) == {"unknown_category": 2, "mask_absent": 1, "polygon_broken": 2}
    assert data.num_objects.sum() == 3  # the checks have not been applied


def test_yolo_part_that_is_not_there(tmp_path: Path) -> None:
    write_text(tmp_path / "data.yaml", "train: images/train\nnames: [cat]\n")
    with pytest.raises(UserError, match="train: expected a folder of images or a list of them") as caught:
        training_part(tmp_path)
    assert "\n" not in str(caught.value)


def test_yaml_of_plain_values(tmp_path: Path) -> None:
    text = (
        "# head\n---\na: 1\nb: 'it''s'\nc: \"x # y\"\nd:\n  0: p\n  1: q\ne: [1, 'a, b']\nf:\n  - x\n  - 2\n"
    )
    assert read_yaml(write_text(tmp_path / "x.yaml", text)) == {
        "a": 1,
        "b": "it's",
        "c": "x # y",
        "d": {0: "p", 1: "q"},
        "e": [1, "a, b"],
        "f": ["x", 2],
    }
