"""Masks as pictures: what counts in them, where they leave their picture, and which are refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.images.read import MAX_PIXELS_VARIABLE
from tests.data.label_files import (
    HEIGHT,
    WIDTH,
    defects,
    label_map,
    labelme,
    objects,
    picture,
    training_part,
)  # fmt: skip
from tests.valid_sets import place, valid


def bitmap_shape(x: float, y: float, mask: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    mask.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return {"label": "cat", "shape_type": "mask", "points": [[x, y], [0, 0]], "mask": text}


@pytest.mark.parametrize(
    ("x", "y", "box"),
    [
        (-5, -3, [0, 0, 15, 7]),
        (50.4, 33.2, [50, 33, 60, 40]),
        (-5, 33, [0, 33, 15, 40]),
        (7, 8, [7, 8, 27, 18]),
    ],
)
def test_a_labelme_bitmap_is_clipped_where_it_leaves_the_picture(
    tmp_path: Path, x: float, y: float, box: list[int]
) -> None:
    labelme(tmp_path, bitmap_shape(x, y, Image.new("L", (20, 10), 255)))
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert objects(training_part(tmp_path)) == [("a.png", "cat", box, area)]
    assert defects(training_part(tmp_path)) == {}


@pytest.mark.parametrize(("x", "y"), [(-30, 0), (0, -10), (60, 0), (0, 99), (1e30, -1e30)])
def test_a_labelme_bitmap_outside_the_picture_is_told(tmp_path: Path, x: float, y: float) -> None:
    labelme(tmp_path, bitmap_shape(x, y, Image.new("L", (20, 10), 255)))
    assert defects(training_part(tmp_path)) == {"zero_area": 1}


def one_mask(folder: Path, mask: Image.Image, name: str = "0.png", **options: Any) -> list[Any]:
    picture(folder / "x" / "images" / "x.png")
    (folder / "x" / "masks").mkdir(parents=True, exist_ok=True)
    mask.save(folder / "x" / "masks" / name, **options)
    return objects(training_part(folder))


def painted(value: Any = 255, mode: str = "L", ground: Any = 0) -> Image.Image:
    mask = Image.new(mode, (WIDTH, HEIGHT), ground)
    mask.paste(value, (10, 5, 30, 15))
    return mask


def test_a_jpeg_mask_has_no_halo(tmp_path: Path) -> None:
    noisy = painted(ground=0).resize((WIDTH * 3, HEIGHT * 3)).resize((WIDTH, HEIGHT))
    found = one_mask(tmp_path, noisy, "0.jpg", quality=60)
    assert found == [("x", "object", [10, 5, 30, 15], 200)]


@pytest.mark.parametrize(
    "mask",
    [
        painted((255, 255, 255, 255), "RGBA", (255, 255, 255, 0)),  # white everywhere, seen in the rectangle
        painted((0, 0, 0, 255), "RGBA", (0, 0, 0, 0)),  # black on transparent ground
        painted((255, 255, 255, 255), "RGBA", (0, 0, 0, 0)),
        painted((255, 255, 255, 255), "RGBA", (0, 0, 0, 255)),  # opaque everywhere
        painted((255, 0), "LA", (0, 0)),  # transparent everywhere
        painted(1),
        painted(1, "1"),
        painted(40_000, "I;16"),
    ],
    ids=["white", "black", "both", "opaque", "transparent", "1 of 255", "bits", "16 bits"],
)
def test_what_counts_in_a_mask_is_what_is_seen(tmp_path: Path, mask: Image.Image) -> None:
    assert one_mask(tmp_path, mask) == [("x", "object", [10, 5, 30, 15], 200)]


def test_a_label_picture_that_is_a_jpeg_inside_is_refused(tmp_path: Path) -> None:
    for kind in ("Object", "Class"):
        label_map(tmp_path / f"Segmentation{kind}" / "a.png", np.asarray(painted(1)))
    picture(tmp_path / "JPEGImages" / "a.jpg")
    assert len(objects(training_part(tmp_path))) == 1
    painted(1).save(tmp_path / "SegmentationObject" / "a.png", "JPEG")
    with pytest.raises(UserError, match=r"a\.png: expected a label picture as it was painted, got a JPEG"):
        training_part(tmp_path)


def test_label_numbers_that_no_16_bits_hold_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for numbers in (np.full((HEIGHT, WIDTH), -1, np.int32), np.full((HEIGHT, WIDTH), 1 << 30, np.int32)):
        Image.fromarray(numbers).save(tmp_path / "a_instanceIds.png", "TIFF")
        with pytest.raises(UserError, match="expected label numbers from 0 to 65535"):
            training_part(tmp_path)


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        ("voc", "SegmentationObject/a.png"),
        ("instances", "a/masks/0.png"),
        ("cityscapes", "ulm_a_gtFine_instanceIds.png"),
    ],
)
def test_a_label_picture_has_the_limits_of_other_pictures(
    tmp_path: Path, reader: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(valid(reader), tmp_path)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(WIDTH * HEIGHT - 1))
    with pytest.raises(UserError, match=rf"{name}: cannot read the image: its 60 x 40 pixels are more than"):
        training_part(tmp_path)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(WIDTH * HEIGHT))
    assert len(objects(training_part(tmp_path))) == 4
    (path,) = (p for p in tmp_path.rglob(Path(name).name) if p.as_posix().endswith(name))
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(UserError, match=rf"{name}: cannot read the image: it is damaged"):
        training_part(tmp_path)


def test_a_labelme_bitmap_of_too_many_pixels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelme(tmp_path, bitmap_shape(0, 0, Image.new("L", (WIDTH + 1, HEIGHT), 255)))
    assert defects(training_part(tmp_path)) == {}
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(WIDTH * HEIGHT))
    assert defects(training_part(tmp_path)) == {"polygon_broken": 1}
