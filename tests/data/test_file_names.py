"""Images are found where their names in the labels are not theirs to the letter; two that might be meant are not."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from maskrcnn.cli.main import main
from maskrcnn.data import find_data, read_data
from maskrcnn.data.file_names import fitting, near
from maskrcnn.data.quality.check import check
from maskrcnn.errors import UserError
from tests.data.data_sets import write_set
from tests.data.label_files import picture, write_json, write_text

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def coco(folder: Path, *names: str) -> Path:
    images = [{"id": k, "file_name": n, "height": 40, "width": 60} for k, n in enumerate(names)]
    found = [
        {"id": k + 1, "image_id": k, "category_id": 1, "segmentation": SQUARE, "bbox": [2, 2, 6, 6]}
        for k in range(len(names))
    ]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "x"}]}
    return write_json(folder / "labels.json", content)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a.png", "images/a.png"), ("/data/upload/1/a.png", "a.png"), ("C:\\photos\\a.png", "a.png"),
        ("photo%200%20%C3%A4.png", "photo 0 ä.png"), ("a.png", "A.PNG"), ("a", "a.jpg"), ("./x/a.jpg", "x/a.JPG"),
        ("bü.png", unicodedata.normalize("NFD", "bü.png")), (unicodedata.normalize("NFD", "bü.png"), "bü.png"),
        ("a.jpg", "a.jpeg"), ("/data/local-files/?d=set/a.png", "set/a.png"), ("a.png", "deep/down/a.png"),
    ],
)  # fmt: skip
def test_the_one_file_that_fits_stands_for_a_name(tmp_path: Path, name: str, file: str) -> None:
    path = picture(tmp_path / file)
    assert fitting([name, file], tmp_path) in ({}, {0: path})  # the second name has the file already
    assert fitting([name], tmp_path) == {0: path}


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a.png"], ["x/a.png", "y/a.png"]),  # two files for a name
        (["x/a.png", "y/a.png"], ["a.png"]),  # two names for a file
        (["train/a.png"], ["val/a.png"]),  # another folder's
        (["a.jpg"], ["a.png"]),  # perhaps its mask
        (["a.png", "A.png"], ["a.png"]),  # the file of another name
        (["", "..", "%", "?d="], ["a.png"]),
        (["a"], ["a.jpg", "a.png"]),
        (["a.png"], ["._a.png", ".hidden/a.png"]),
    ],
)
def test_what_might_be_meant_stands_for_nothing(tmp_path: Path, names: list[str], files: list[str]) -> None:
    for file in files:
        picture(tmp_path / file)
    if names == ["a.png", "A.png"] and (tmp_path / "A.png").is_file():
        pytest.skip("a file system that does not tell capitals")
    assert fitting(names, tmp_path) == {}


def test_the_nearest_file_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "scan_001.png")
    folders = [tmp_path, tmp_path / "images", tmp_path / "none"]
    assert near("scan_001.tif", folders).endswith(f"'scan_001.png' in {tmp_path / 'images'}.")
    assert "scan_001.png" in near("scan_01.png", folders)
    assert near("photo.jpg", folders) == near("", folders) == ""
    path = coco(tmp_path, "scan_01.png")
    with pytest.raises(
        UserError,
        match=r"not in its own folder, images\. Near is 'scan_001.png' in .*images\. Give their folder",
    ):
        find_data(path)
    picture(tmp_path / "b.png")
    found = check(read_data(find_data(coco(tmp_path, "b.png", "scan_01.png")).train))
    assert found.counts == {"image_missing": 1}
    assert "Near is 'scan_001.png'" in next(found.findings()).message


@pytest.mark.parametrize("given", [False, True])
def test_names_that_fit_are_told_and_go_through_every_verb(
    tmp_path: Path, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(3):
        picture(tmp_path / "images" / f"im{k}.png")
    path = coco(tmp_path, "images\\im0.png", "IM1.png", "/data/upload/1/im2.png")
    images = tmp_path / "images" if given else ""
    data = read_data(find_data(tmp_path, images).train)
    report = check(data)
    assert report.counts == {"name_differs": 3}
    usable = report.usable()
    assert [usable.image_path(i).name for i in range(3)] == ["im0.png", "im1.png", "im2.png"]
    assert usable.subset([2]).image_path(0) == tmp_path / "images" / "im2.png"
    words = [str(path), "--images", str(images)] if given else [str(path)]
    assert main(["doctor", *words]) == 0
    assert main(["view", *words, "--out", str(tmp_path / "out")]) == 0
    assert "name_differs: 3 (the one file that fits is taken)" in capsys.readouterr().out


def test_via_and_yolo_names_are_found_likewise(tmp_path: Path) -> None:
    via = write_set(tmp_path / "via", "via", "train")
    for path in (via / "train").glob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    found = check(read_data(find_data(via).train))
    assert found.counts == {"name_differs": 3}
    yolo = write_set(tmp_path / "yolo", "yolo", "train")
    write_text(yolo / "data.yaml", "train: list.txt\nnames: [ant, bee]\n")
    lines = [f"/home/me/yolo/images/train/{n}.png" for n in "abc"]
    write_text(yolo / "list.txt", "\n".join(lines))
    data = read_data(find_data(yolo).train)
    assert data.num_objects.tolist() == [2, 2, 2]
    assert len(check(data)) == 0


@pytest.mark.parametrize(
    "case",
    [
        "03-labelstudio-backslash", "05-labelstudio-data-upload", "06-labelstudio-urlencoded", "30-nfd-nfc-names",
        "31-case-of-extension", "32-name-without-extension",
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", [False, True])
def test_reported_names(shared: Path, case: str, given: bool) -> None:
    folder = shared / "cases" / "datasets" / case
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    data = read_data(find_data(folder, folder / "images" if given else "").train)
    report = check(data)
    assert report.counts == {"name_differs": 4}
    assert report.usable().num_objects.tolist() == [2, 2, 2, 2]
