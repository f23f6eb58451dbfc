"""Formats with label pictures: Pascal VOC, a PNG an object, Cityscapes; and how a format is found."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data import FORMATS, find_data, read_data, to_coco
from maskrcnn.data import find as finding
from maskrcnn.data.coco import CocoData
from maskrcnn.data.readers.shapes import masks_of
from maskrcnn.errors import UserError
from maskrcnn.evaluation.scores import evaluate_results
from maskrcnn.masks.rle import rle_decode
from tests.data.data_sets import WRITERS, write_set
from tests.data.label_files import (
    HEIGHT,
    WIDTH,
    defects,
    label_map,
    objects,
    picture,
    training_part,
    write_json,
    write_text,
)


def painted(*rectangles: tuple[int, int, int, int, int], dtype: type = np.uint8) -> np.ndarray:
    """Paint (number, x0, y0, x1, y1) in order onto zeros of (HEIGHT, WIDTH)."""
    numbers = np.zeros((HEIGHT, WIDTH), dtype)
    for number, x0, y0, x1, y1 in rectangles:
        numbers[y0:y1, x0:x1] = number
    return numbers


def test_masks_of_a_label_map_are_its_numbers() -> None:
    numbers = np.random.default_rng(0).integers(0, 4, (7, 9)) * 300
    masks = masks_of(numbers)
    assert sorted(masks) == [300, 600, 900]
    for k, rle in masks.items():
        np.testing.assert_array_equal(rle_decode(rle), numbers == k)
    assert masks_of(np.zeros((3, 4), np.int64)) == {}


# --- Pascal VOC


def voc(root: Path, name: str, numbers: np.ndarray, kinds: np.ndarray) -> None:
    picture(root / "JPEGImages" / f"{name}.jpg")
    label_map(root / "SegmentationObject" / f"{name}.png", numbers, palette=True)
    label_map(root / "SegmentationClass" / f"{name}.png", kinds, palette=True)


def test_voc_objects_take_their_class_from_the_other_picture(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    # Two objects with a void border of two pixels around the first.
    numbers = painted((255, 8, 3, 32, 17), (1, 10, 5, 30, 15), (2, 40, 20, 50, 30))
    kinds = painted((255, 8, 3, 32, 17), (15, 10, 5, 30, 15), (8, 40, 20, 50, 30))
    voc(root, "2007_1", numbers, kinds)
    voc(root, "2007_2", painted(), painted())
    for part, name in (("train", "2007_1"), ("val", "2007_2")):
        write_text(root / "ImageSets" / "Segmentation" / f"{part}.txt", f"{name}\n")
    train, val = find_data(tmp_path)
    assert val is not None
    data = read_data(train)
    assert objects(data) == [
        ("2007_1", "person", [10, 5, 30, 15], 200),
        ("2007_1", "cat", [40, 20, 50, 30], 100),
    ]
    assert len(data.class_names) == 20
    assert defects(data) == {}
    assert read_data(val).num_objects.tolist() == [0]


def test_voc_with_classes_of_ones_own_and_without_lists(tmp_path: Path) -> None:
    voc(tmp_path, "a", painted((1, 0, 0, 10, 10), (2, 20, 20, 30, 30)), painted((2, 0, 0, 10, 10)))
    write_text(tmp_path / "class_names.txt", "_background_\nbolt\nnut\n")
    data = training_part(tmp_path)
    assert data.class_names == ("bolt", "nut")
    assert objects(data)[0][1:] == ("nut", [0, 0, 10, 10], 100)
    assert defects(data) == {"unknown_category": 1}  # the object that has no class


def test_voc_mistakes_are_named(tmp_path: Path) -> None:
    voc(tmp_path, "a", painted((1, 0, 0, 10, 10)), painted((2, 0, 0, 10, 10)))
    path = tmp_path / "SegmentationClass" / "a.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(UserError, match="grey or with a palette, got one of mode RGB"):
        training_part(tmp_path)
    label_map(path, np.zeros((5, 5), np.uint8), palette=True)
    with pytest.raises(UserError, match=r"expected the size of its SegmentationClass \(5, 5\)"):
        training_part(tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png: cannot read the image: not an image"):
        training_part(tmp_path)


# --- a PNG an object


def bowl(folder: Path, name: str, *masks: np.ndarray) -> None:
    picture(folder / name / "images" / f"{name}.png")
    (folder / name / "masks").mkdir()
    for k, mask in enumerate(masks):
        label_map(folder / name / "masks" / f"{k}.png", mask)


@pytest.mark.parametrize("parts", [("stage1_train",), ("train", "val")])
def test_a_png_an_object(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        bowl(tmp_path / part, "x", painted((255, 10, 5, 30, 15)), painted((255, 0, 0, 4, 4)))
        bowl(tmp_path / part, "y")
    train, val = find_data(tmp_path)
    assert (val is not None) == ("val" in parts)
    data = read_data(train)
    assert data.class_names == ("object",)
    assert objects(data) == [("x", "object", [10, 5, 30, 15], 200), ("x", "object", [0, 0, 4, 4], 16)]
    assert data.num_objects.tolist() == [2, 0]
    assert defects(data) == {}


def test_a_mask_of_another_size_is_a_defect_and_a_broken_one_a_mistake(tmp_path: Path) -> None:
    bowl(tmp_path, "x", painted((255, 10, 5, 30, 15)), np.full((5, 5), 255, np.uint8))
    assert defects(training_part(tmp_path)) == {"rle_broken": 1}
    (tmp_path / "x" / "masks" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"masks/0.png: cannot read the image: the file is empty"):
        training_part(tmp_path)


# --- Cityscapes


def test_cityscapes_numbers(tmp_path: Path) -> None:
    numbers = painted(
        (7, 0, 0, 60, 40), (26, 40, 0, 60, 10), (26000, 10, 5, 30, 15), (26001, 40, 20, 50, 30), (24000, 0, 30, 5, 40),
        dtype=np.uint16,
    )  # fmt: skip
    for part in ("train", "val"):
        picture(tmp_path / "leftImg8bit" / part / "ulm" / "ulm_1_leftImg8bit.png")
        label_map(tmp_path / "gtFine" / part / "ulm" / "ulm_1_gtFine_instanceIds.png", numbers)
    train, val = find_data(tmp_path)
    assert val is not None
    data = read_data(train)
    assert objects(data) == [
        ("ulm_1", "person", [0, 30, 5, 40], 50),
        ("ulm_1", "car", [10, 5, 30, 15], 200),
        ("ulm_1", "car", [40, 20, 50, 30], 100),
    ]
    assert len(data.annotations(0, crowd=True)) == 1  # the cars that were not told apart
    assert data.category_ids[0] == 24
    assert data.file_name(0) == "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png"
    assert defects(data) == {}


def test_cityscapes_style_with_names_from_the_polygons(tmp_path: Path) -> None:
    numbers = painted((3000, 10, 5, 30, 15), (5001, 40, 20, 50, 30), dtype=np.uint16)
    picture(tmp_path / "a.jpg")
    label_map(tmp_path / "a_instanceIds.png", numbers)
    polygon = [[10, 5], [29, 5], [29, 14], [10, 14]]
    write_json(tmp_path / "a_polygons.json", {"objects": [{"label": "bolt", "polygon": polygon}]})
    assert [o[1:] for o in objects(training_part(tmp_path))] == [
        ("bolt", [10, 5, 30, 15], 200),
        ("label 5", [40, 20, 50, 30], 100),
    ]


def test_cityscapes_polygons_alone(tmp_path: Path) -> None:
    ring = [[10, 5], [30, 5], [30, 15], [10, 15]]
    labels = ("road", "car", "cargroup", "person")
    content = {
        "imgHeight": HEIGHT,
        "imgWidth": WIDTH,
        "objects": [{"label": n, "polygon": ring} for n in labels],
    }
    picture(tmp_path / "leftImg8bit" / "train" / "ulm_1_leftImg8bit.png")
    write_json(tmp_path / "gtFine" / "train" / "ulm_1_gtFine_polygons.json", content)
    data = training_part(tmp_path)
    assert [(o[1], o[3]) for o in objects(data)] == [("car", 200), ("person", 200)]
    assert len(data.annotations(0, crowd=True)) == 1
    assert defects(data) == {}


# --- any format


def test_what_was_looked_for_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "readme.md", "nothing")
    with pytest.raises(UserError) as caught:
        find_data(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in FORMATS)
    with pytest.raises(UserError, match="Looked for a COCO JSON"):
        find_data(tmp_path, format="coco")
    with pytest.raises(UserError, match=r"--format 'labelmee': expected one of .* Did you mean 'labelme'"):
        find_data(tmp_path, format="labelmee")
    with pytest.raises(UserError, match="does not exist"):
        find_data(tmp_path / "nowhere")


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    bowl(tmp_path, "x", painted((255, 10, 5, 30, 15)))
    numbers = painted((24000, 10, 5, 30, 15), dtype=np.uint16)
    label_map(tmp_path / "x_instanceIds.png", numbers)
    assert find_data(tmp_path).train.format == "instances"
    assert find_data(tmp_path, format="cityscapes").train.format == "cityscapes"


def test_large_sets_are_cached_until_a_label_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finding, "SHARE_FROM_BYTES", 0)
    folder = tmp_path / "data"
    bowl(folder, "x", painted((255, 10, 5, 30, 15)))
    first, again = training_part(folder), training_part(folder)
    assert first.arrays.path is not None
    assert objects(first) == objects(again)
    label_map(folder / "x" / "masks" / "1.png", painted((255, 0, 0, 4, 4)))
    assert len(objects(training_part(folder))) == 2


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "coco"])
def test_cached_parts_of_one_set_lie_beside_each_other(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finding, "SHARE_FROM_BYTES", 0)
    train, val = find_data(write_set(tmp_path / "set", kind))
    assert val is not None
    first, _ = read_data(train), read_data(val)
    assert objects(pickle.loads(pickle.dumps(first))) == objects(first)  # as a process for loading gets it
    assert len(list((tmp_path / "cache").glob("*.arrays"))) == 2


def scored_against_itself(data: CocoData) -> float:
    content = to_coco(data)
    results = [
        {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for a in content["annotations"]
        if isinstance(a["segmentation"], dict)
    ]
    return evaluate_results(content, results, ("segm",)).numbers["segm"]["AP"]


def test_a_set_of_another_format_is_coco_json_for_evaluation(tmp_path: Path) -> None:
    bowl(tmp_path, "x", painted((255, 10, 5, 30, 15)), painted((255, 0, 0, 14, 14)))
    data = training_part(tmp_path)
    assert scored_against_itself(data) == pytest.approx(1.0)
    content = to_coco(data)
    write_json(tmp_path / "coco" / "train.json", content)
    picture(tmp_path / "coco" / "x" / "images" / "x.png")
    assert objects(training_part(tmp_path / "coco")) == objects(data)
