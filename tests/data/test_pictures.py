"""Pictures are decoded whole before they are learnt from, and only once as long as they stay what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.config import InputConfig
from maskrcnn.data import advise, checked, find_data, pictures, read_coco, read_data
from maskrcnn.data.coco import CocoData
from maskrcnn.data.pictures import Picture, StillReadable, look_at
from maskrcnn.data.quality.check import check
from maskrcnn.errors import UserError
from maskrcnn.images import bands
from tests.data.data_sets import write_set

NAMES = ("a.jpg", "b.png", "c.jpg")


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    """Data set of three noisy pictures of 30 x 20 with an object each."""
    noise = np.random.default_rng(0).integers(0, 250, (len(NAMES), 20, 30, 3), np.uint8)
    images, annotations = [], []
    for k, (name, pixels) in enumerate(zip(NAMES, noise, strict=True), start=1):
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": k, "file_name": name, "height": 20, "width": 30})
        shape = [[2, 2, 8, 2, 8, 8, 2, 8]]
        fields = {"bbox": [2, 2, 6, 6], "segmentation": shape}
        annotations.append({"id": k, "image_id": k, "category_id": 1, **fields})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "train.json")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that were decoded."""
    names: list[str] = []
    read = bands.read_input

    def counted(path: Any, config: InputConfig) -> np.ndarray:
        names.append(Path(path).name)
        return read(path, config)

    monkeypatch.setattr(bands, "read_input", counted)
    return names  # pyright: ignore[reportReturnType]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of the cache of decoded pictures, which small data sets use here as large ones do."""
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "KEEP_FROM_BYTES", 1)
    return tmp_path / "cache"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_a_picture_whose_end_is_missing_is_left_out(data: CocoData, name: str) -> None:
    cut(data.images_dir / name)
    repaired, report = checked(data)
    assert report.counts == {"image_unreadable": 1}
    assert f"{name}: cannot read the image" in next(report.findings()).message
    assert [repaired.file_name(i) for i in range(2)] == [n for n in NAMES if n != name]
    assert check(data, images=False).counts == {}


def test_what_was_sound_is_not_decoded_again(data: CocoData, decoded: list[str], kept: Path) -> None:
    cut(data.images_dir / "a.jpg")
    first = look_at(data)
    assert sorted(decoded) == sorted(NAMES)
    assert [isinstance(p, Picture) for p in first] == [False, True, True]
    decoded.clear()
    assert look_at(data) == first
    assert decoded == ["a.jpg"]  # it may have been mended without a trace
    decoded.clear()
    Image.new("RGB", (30, 20)).save(data.images_dir / "c.jpg")
    assert look_at(data)[2] == Picture((20, 30), 0)
    assert sorted(decoded) == ["a.jpg", "c.jpg"]
    assert len(list(kept.glob("*.pictures"))) == 1


def test_what_was_found_before_an_interruption_is_kept(
    data: CocoData, decoded: list[str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = pictures._look

    def interrupted(path: Path, brightest: int | None, input: InputConfig | None) -> Any:
        if path.name == "c.jpg":
            raise KeyboardInterrupt
        return look(path, brightest, input)

    with monkeypatch.context() as patched:
        patched.setattr(pictures, "_look", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look_at(data, num_threads=1)
    decoded.clear()
    assert all(isinstance(p, Picture) for p in look_at(data))
    assert decoded == ["c.jpg"]


def test_all_parts_and_sets_of_a_folder_of_pictures_know_them(
    tmp_path: Path, decoded: list[str], kept: Path
) -> None:
    train, val = find_data(write_set(tmp_path / "set", "yolo"))
    assert val is not None
    for _ in range(2):
        assert all(isinstance(p, Picture) for part in (train, val) for p in look_at(read_data(part)))
    assert sorted(decoded) == ["a.png", "b.png", "c.png", "d.png", "e.png"]


def test_small_sets_leave_nothing_in_the_cache(
    data: CocoData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    look_at(data)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_or_is_damaged_costs_time_only(
    data: CocoData, decoded: list[str], kept: Path
) -> None:
    first = look_at(data)
    for path in kept.glob("*.pictures"):
        path.write_bytes(path.read_bytes()[:20])
    decoded.clear()
    assert look_at(data) == first
    assert sorted(decoded) == sorted(NAMES)


def test_pictures_of_few_bits_in_many_are_worth_a_look(data: CocoData) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)  # 12 bits
    Image.fromarray(noise).save(data.images_dir / "b.png")
    repaired, report = checked(data, "refuse")
    odd = advise(repaired, brightest=report.brightest)
    assert [(f.kind, f.image_id, f.message) for f in odd.findings()] == [
        ("nearly_black", 2, "its largest value is 16 of 255")
    ]


def test_pictures_that_break_later_are_noticed_without_decoding_the_others(
    data: CocoData, decoded: list[str]
) -> None:
    watch = StillReadable(data)
    assert watch.lost() == {}
    assert decoded == []
    cut(data.images_dir / "c.jpg")
    (data.images_dir / "a.jpg").unlink()
    os.utime(data.images_dir / "b.png", (1, 1))  # touched, and still good
    lost = watch.lost()
    assert list(lost) == [0, 2]
    assert "no file" in lost[0]
    assert "cannot read the image" in lost[2]
    assert sorted(decoded) == ["b.png", "c.jpg"]
    Image.new("RGB", (99, 20)).save(data.images_dir / "c.jpg")
    assert "its size has changed to (20, 99)" in watch.lost()[2]


def test_a_collected_case_is_found(shared: Path) -> None:
    folder = shared / "cases" / "datasets" / "157-truncated-jpeg-in-train"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    report = check(read_coco(folder / "annotations" / "train.json", folder / "train"))
    assert report.counts == {"image_unreadable": 1}
    floats = folder.with_name("159-float-tiff-in-data-set")
    report = check(read_coco(floats / "a.json", floats / "images"))
    assert report.counts == {"image_unreadable": 4}
    with pytest.raises(
        UserError, match="no object to learn from is left after the checks: 4 image_unreadable"
    ):
        report.usable()
