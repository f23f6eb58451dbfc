"""No picture is left out silently: several folders are read as one part, and what is not read is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maskrcnn.data import CocoData, find_data, read_data
from maskrcnn.data.quality.check import check
from maskrcnn.data.quality.defects import RULES
from maskrcnn.predict import not_read
from tests.data.data_sets import write_set
from tests.data.label_files import picture, write_json, write_text


def told(data: CocoData) -> list[str]:
    """Messages of the checks about files that were not read; they find nothing else."""
    findings = list(check(data).findings())
    assert {f.kind for f in findings} <= {"not_read"}
    return [f.line for f in findings]


@pytest.mark.parametrize("kind", ["labelme", "instances"])
@pytest.mark.parametrize("names", [("day1", "day2"), ("train/day1", "train/day2"), ("train_1", "train_2")])
def test_several_folders_are_one_part(tmp_path: Path, kind: str, names: tuple[str, ...]) -> None:
    write_set(tmp_path / "made", kind, "train")
    for name in names:
        shutil.copytree(tmp_path / "made" / "train", tmp_path / "set" / name)
    if names[0] != "day1":
        shutil.copytree(tmp_path / "made" / "train", tmp_path / "set" / "val")
    train, val = find_data(tmp_path / "set")
    data = read_data(train)
    assert data.num_objects.tolist() == [2] * 6
    assert len(set(data.image_ids.tolist())) == 6
    assert told(data) == []
    assert (val is None) == (names[0] == "day1")


@pytest.mark.parametrize("kind", ["labelme", "instances", "yolo_folders"])
def test_a_folder_that_names_no_part_is_told_beside_one_that_does(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path, kind)
    if kind == "yolo_folders":
        picture(tmp_path / "images" / "z.png")
        shutil.copy(tmp_path / "labels" / "train" / "a.txt", tmp_path / "labels" / "z.txt")
    else:
        shutil.copytree(tmp_path / "train", tmp_path / "old")
    data = read_data(find_data(tmp_path).train)
    assert data.num_images == 3
    (line,) = told(data)
    assert "neither train nor val by name" in line
    assert kind == "yolo_folders" or "/old: " in line


def test_labelme_pictures_without_a_label_file_are_told(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "labelme", "train") / "train"
    for name in ("x.png", "y.jpg"):
        picture(folder / name)
    (folder / "z.HEIC").write_bytes(b"ftypheic")
    lines = told(read_data(find_data(tmp_path).train))
    assert lines[0].startswith("2 pictures without a label file: ")
    assert "x.png" in lines[0]
    assert lines[1].startswith("1 pictures in formats that are not read: ")
    (folder / "x.png").unlink()
    (folder / "a.png").unlink()  # the reverse: a label file without its picture
    report = check(read_data(find_data(tmp_path).train))
    assert report.counts == {"image_missing": 1, "not_read": 2}


@pytest.mark.parametrize("kind", ["yolo", "yolo_folders"])
def test_yolo_label_files_without_a_picture_are_told(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path, kind)
    train = read_data(find_data(tmp_path).train)
    assert told(train) == []
    write_text(tmp_path / "labels" / "train" / "lost.txt", "0 0 0 1 0 1 1\n")
    (tmp_path / "images" / "train" / "b.heic").write_bytes(b"ftypheic")
    lines = told(read_data(find_data(tmp_path).train))
    assert [line.split(": ")[0] for line in lines] == [
        "1 label files without a picture", "1 pictures in formats that are not read"
    ]  # fmt: skip
    picture(tmp_path / "images" / "train" / "empty.png")  # YOLO's way to say that there is nothing
    assert read_data(find_data(tmp_path).train).num_objects.tolist() == [2, 2, 2, 0]


def test_a_list_of_images_that_cannot_be_is_a_finding(tmp_path: Path) -> None:
    write_set(tmp_path, "yolo", "train")
    write_text(tmp_path / "data.yaml", "train: list.txt\nnames: [ant, bee]\n")
    write_text(tmp_path / "list.txt", f"images/train/a.png\n{'x' * 300}/b.png\nnowhere/c.png\n")
    report = check(read_data(find_data(tmp_path).train))
    assert report.counts["image_missing"] == 2
    assert report.usable().num_objects.tolist() == [2]


def test_images_without_masks_are_told(tmp_path: Path) -> None:
    write_set(tmp_path, "instances", "train")
    picture(tmp_path / "train" / "q" / "images" / "q.png")
    (line,) = told(read_data(find_data(tmp_path).train))
    assert line.startswith("1 images without masks/: ")


def test_voc_masks_in_no_list_and_pictures_without_one_are_told(tmp_path: Path) -> None:
    write_set(tmp_path, "voc")
    train, val = find_data(tmp_path)
    assert val is not None
    assert told(read_data(train)) == told(read_data(val)) == []
    for kind in ("Object", "Class"):
        folder = tmp_path / f"Segmentation{kind}"
        shutil.copy(folder / "a.png", folder / "z.png")
    picture(tmp_path / "JPEGImages" / "z.jpg")
    picture(tmp_path / "JPEGImages" / "y.jpg")
    (line,) = told(read_data(find_data(tmp_path).train))
    assert line.startswith("1 masks in no list: ")
    shutil.rmtree(tmp_path / "ImageSets")
    (line,) = told(read_data(find_data(tmp_path).train))
    assert line.startswith("1 pictures without SegmentationObject: ")


def test_polygons_beside_pictures_of_ids_are_told(tmp_path: Path) -> None:
    write_set(tmp_path, "cityscapes", "train")
    (tmp_path / "gtFine" / "train" / "b_gtFine_instanceIds.png").unlink()
    data = read_data(find_data(tmp_path).train)
    assert data.num_images == 2
    (line,) = told(data)
    assert line.startswith("1 polygons without a picture of ids: ")


def test_what_is_left_out_can_be_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "labelme", "train")
    picture(folder / "train" / "x.png")
    report = check(read_data(find_data(tmp_path).train))
    assert RULES["not_read"] == "left out"
    assert report.usable().num_images == 3
    with pytest.raises(ValueError, match="not_read: 1 pictures without a label file"):
        report.usable("refuse")


def test_predict_tells_of_pictures_that_it_does_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert not_read([tmp_path]) == []
    write_json(tmp_path / "a.json", {})
    for name in ("b.HEIC", "c.heic", "._d.heic"):
        (tmp_path / name).write_bytes(b"ftypheic")
    (line,) = not_read([tmp_path, tmp_path / "a.png"])
    assert line == f"{tmp_path}: 2 others not read (.HEIC, .heic): convert them to JPEG or PNG"


@pytest.mark.parametrize(("case", "images"), [("78-labelme-two-day-folders", 8), ("120-dsb-two-batches", 6)])
def test_reported_folders(shared: Path, case: str, images: int) -> None:
    folder = shared / "cases" / "datasets" / case
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert read_data(find_data(folder).train).num_objects.tolist() == [2] * images
    assert not_read([shared / "cases" / "datasets" / "167-heic-beside-jpg-in-folder"])
