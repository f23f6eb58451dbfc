"""Advice about data sets: oddities that are no defects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.data import FORMATS, CocoData, advise, compare, find_data, read_data
from maskrcnn.data.quality.advice import euler_numbers
from maskrcnn.data.quality.defects import ADVICE, RULES
from maskrcnn.masks.rle import read_runs, rle_encode
from tests.data.label_files import picture, write_json

SIZE = (40, 60)


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(
    number: int, image: int, *rings: list[float], box: list[float] | None = None, label: int = 1
) -> Any:
    xs, ys = [v for r in rings for v in r[::2]], [v for r in rings for v in r[1::2]]
    around = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if rings else [0, 0, 1, 1]
    mask = {"segmentation": list(rings), "bbox": box or around}
    return {"id": number, "image_id": image, "category_id": label, **mask}


def part(folder: Path, name: str, annotations: list[Any], *, images: int = 2, names: str = "ab") -> CocoData:
    for i in range(images):
        file = picture(folder / name / f"{i}.png")
        pixels = np.asarray(Image.open(file)).copy()
        pixels[0, 0] = (i, 77 if name == "train" else 99, 0)
        Image.fromarray(pixels).save(file)
    listed = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(images)]
    categories = [{"id": k, "name": n} for k, n in enumerate(names, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    write_json(folder / name / f"{name}.json", content)
    return read_data(find_data(folder / name / f"{name}.json").train)


def counts(data: CocoData) -> dict[str, int]:
    return advise(data).counts


SOUND = [annotation(1, 0, square(5, 5, 20)), annotation(2, 1, square(5, 5, 20), label=2)]


def test_a_sound_set_gets_no_advice(tmp_path: Path) -> None:
    assert counts(part(tmp_path, "train", SOUND)) == {}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([annotation(3, 0, square(30, 5, 1))], {"one_pixel": 1}),
        ([annotation(3, 0, square(30, 5, 10), box=[30, 5, 10, 16])], {"box_loose": 1}),
        ([annotation(3, 0, square(5.2, 5, 20))], {"drawn_twice": 1}),
        ([annotation(3, 0, square(5.2, 5, 20), label=2)], {}),
        ([annotation(3, 1, square(30, 5, 20), square(35, 10, 4))], {"hole_filled": 1}),
        ([annotation(3, 1, square(30, 5, 10), square(45, 10, 4))], {}),
        ([annotation(0, 1, square(30, 5, 10))], {"annotation_id_0": 1}),
        (
            [annotation(k, 1, square(30, k / 4, 2.5)) for k in range(3, 110)],
            {"many_objects": 1, "drawn_twice": 0},
        ),
    ],
)
def test_oddities(tmp_path: Path, more: list[Any], expected: dict[str, int]) -> None:
    found = counts(part(tmp_path, "train", SOUND + more))
    assert {k: v for k, v in found.items() if v} == {k: v for k, v in expected.items() if v}


def test_every_kind_of_advice_says_what_is_done() -> None:
    assert not ADVICE.keys() & RULES.keys()
    assert all(ADVICE.values())


def test_the_page_about_data_lists_every_format_and_rule() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    listed = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert listed.keys() == FORMATS.keys() | RULES.keys() | ADVICE.keys()
    assert all(listed[kind] == rule for kind, rule in (RULES | ADVICE).items())


def test_worst_first(tmp_path: Path) -> None:
    loose = [
        annotation(3, 0, square(30, 5, 10), box=[30, 5, 10, 15]),
        annotation(4, 0, square(30, 20, 10), box=[30, 20, 10, 19]),
    ]
    report = advise(part(tmp_path, "train", SOUND + loose))
    assert [f.annotation_id for f in report.findings()] == [4, 3]


def test_classes_and_ids(tmp_path: Path) -> None:
    found = advise(part(tmp_path, "train", SOUND, names="abc"))
    assert [f.message for f in found.findings()] == ["'c' has no object"]


def test_a_bitmap_with_a_hole(tmp_path: Path) -> None:
    bitmap = np.zeros(SIZE, np.uint8)
    bitmap[5:25, 5:25] = 1
    whole = rle_encode(bitmap)
    bitmap[10:12, 10:12] = 0
    holed = rle_encode(bitmap)
    more = [
        {**annotation(k, 1), "bbox": [5, 5, 20, 20], "segmentation": m} for k, m in ((3, whole), (4, holed))
    ]
    report = advise(part(tmp_path, "train", [*SOUND[:1], {**more[0], "category_id": 2}, more[1]]))
    assert [(f.kind, f.annotation_id) for f in report.findings()] == [("mask_with_hole", 4)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_euler_numbers_equal_counting_corners(seed: int, num_masks: int) -> None:
    """Gray's formula on 2 x 2 windows, for pixels joined by corners: (Q1 - Q3 - 2 QD) / 4."""
    rng = np.random.default_rng(seed)
    masks = [
        (rng.random((int(rng.integers(1, 9)), int(rng.integers(1, 9)))) < rng.random())
        for _ in range(num_masks)
    ]
    expected = []
    for mask in masks:
        m = np.pad(mask, 1).astype(int)
        sums = m[:-1, :-1] + m[1:, :-1] + m[:-1, 1:] + m[1:, 1:]
        diagonal = (sums == 2) & (m[:-1, :-1] == m[1:, 1:])
        expected.append(((sums == 1).sum() - (sums == 3).sum() - 2 * diagonal.sum()) // 4)
    runs = read_runs([rle_encode(m.astype(np.uint8)) for m in masks])
    heights = np.array([len(m) for m in masks])
    assert euler_numbers(runs, heights).tolist() == expected


def test_pictures_twice_and_in_both_parts(tmp_path: Path) -> None:
    train, val = part(tmp_path, "train", SOUND), part(tmp_path, "val", SOUND[:1])
    assert compare(train, val).counts == {"class_not_in_val": 1}
    assert compare(val, train).counts == {"class_not_in_train": 1}
    shutil.copy(train.image_path(1), val.image_path(0))
    shutil.copy(train.image_path(1), train.image_path(0))
    assert counts(train) == {"same_picture": 1}
    found = [f for f in compare(train, val).findings() if f.kind == "in_both_parts"]
    assert [(f.image_id, f.message) for f in found] == [(0, "0.png is 0.png of training")]


def test_exif(tmp_path: Path) -> None:
    data = part(tmp_path, "train", SOUND)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(data.image_path(1)).save(data.image_path(1), exif=exif)
    assert counts(data) == {"exif_turned": 1}
