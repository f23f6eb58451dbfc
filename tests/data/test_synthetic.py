from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.data.synthetic import (
    CLASSES,
    MIN_VISIBLE_FRACTION,
    Scene,
    coverage,
    flat,
    make_shape,
    make_synthetic,
    polygon_area,
    uncompressed_counts,
)
from maskrcnn.errors import UserError

SIZE = (96, 128)
# pycocotools' own use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("shapes"), num_train=120, num_val=20, size=SIZE, seed=3)


def read(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode with pycocotools, which had no part in making the set."""
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).astype(
            bool
        )
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation).astype(bool)


def black_scene(seed: int, white: int = -1) -> Scene:
    """Crowded scene, all black but for one object."""
    rng = np.random.default_rng(seed)
    scene = Scene(SIZE, flat((0, 0, 0)), rng)
    for index in range(15):
        shade = 255.0 * (len(scene.placed) == white)
        name = list(CLASSES)[index % len(CLASSES)]
        center = (rng.uniform(0, SIZE[1]), rng.uniform(0, SIZE[0]))
        scene.add(make_shape(name, rng, center, rng.uniform(20, 60)), flat([shade] * 3))
    return scene


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_exactly_what_the_picture_shows(seed: int) -> None:
    scene = black_scene(seed)
    assert len(scene.placed) >= 5
    assert any(p.cut for p in scene.placed)
    for index, placed in enumerate(scene.placed):
        shown = black_scene(seed, white=index).image()[..., 0]
        assert (shown == 255).any()
        assert ((shown > 0) & (shown < 255)).any()  # anti-aliased
        assert np.array_equal(scene.full_mask(placed), shown >= 128)


@pytest.mark.parametrize("name", CLASSES)
def test_coverage_has_the_area_of_the_outline_less_its_holes(name: str) -> None:
    rng = np.random.default_rng(0)
    for diameter in (15, 40, 70):
        shape = make_shape(name, rng, (64.3, 48.7), diameter)
        _, alpha = coverage(shape, SIZE)
        area = polygon_area(shape.outline) - sum(polygon_area(hole) for hole in shape.holes)
        assert alpha.sum() == pytest.approx(area, rel=0.03)


def test_the_set_has_all_kinds_of_annotations(folder: Path) -> None:
    content = read(folder)
    annotations = content["annotations"]
    assert {a["category_id"] for a in annotations} == set(CLASSES.values())
    assert any(isinstance(a["segmentation"], list) for a in annotations)
    assert any(isinstance(a["segmentation"], dict) and not a["iscrowd"] for a in annotations)
    assert any(a["iscrowd"] for a in annotations)
    annotated = {a["image_id"] for a in annotations}
    assert 0 < len(content["images"]) - len(annotated) < 20  # some are empty
    assert {(i["height"], i["width"]) for i in content["images"]} == {SIZE, SIZE[::-1]}
    assert len({a["id"] for a in annotations}) == len(annotations)


def perimeter(polygons: list[list[float]]) -> float:
    rings = [np.reshape(ring, (-1, 2)) for ring in polygons]
    return float(sum(np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum() for ring in rings))


def test_files_boxes_and_areas_agree_with_the_masks(folder: Path) -> None:
    for split in ("train", "val"):
        content = read(folder, split)
        images = {image["id"]: image for image in content["images"]}
        for image in images.values():
            with Image.open(folder / split / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
        for a in content["annotations"]:
            image = images[a["image_id"]]
            mask = decode(a["segmentation"], image["height"], image["width"])
            exact = isinstance(a["segmentation"], dict)
            # Rasterising a polygon may move its outline by half a pixel.
            slack = 0 if exact else 0.5 * perimeter(a["segmentation"])
            assert abs(int(mask.sum()) - a["area"]) <= slack
            y, x = np.nonzero(mask)
            corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            x0, y0, width, height = a["bbox"]
            # A sharp tip is thinner than a pixel for a while.
            np.testing.assert_allclose(corners, [x0, y0, x0 + width, y0 + height], atol=0 if exact else 3)


@pytest.mark.parametrize("seed", range(4))
def test_every_object_is_fair_to_ask_for(seed: int) -> None:
    for placed in black_scene(seed).placed:
        assert placed.mask.sum() >= MIN_VISIBLE_FRACTION * placed.whole_area


def test_the_seed_decides_and_a_larger_set_begins_with_the_smaller(folder: Path, tmp_path: Path) -> None:
    again = make_synthetic(tmp_path / "same", 10, 0, size=SIZE, seed=3)
    other = make_synthetic(tmp_path / "other", 10, 0, size=SIZE, seed=4)
    name = "train/000007.jpg"
    assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert (again / name).read_bytes() != (other / name).read_bytes()
    few = read(again)["annotations"]
    assert few == read(folder)["annotations"][: len(few)]


@pytest.mark.parametrize("first", [0, 1])
def test_uncompressed_counts_decode_to_the_mask(first: int) -> None:
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    mask[0, 0] = first
    assert np.array_equal(decode({"size": [5, 7], "counts": uncompressed_counts(mask)}, 5, 7), mask)


def test_bad_requests_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 48 pixels a side, got 20x300"):
        make_synthetic(tmp_path, 1, 1, size=(20, 300))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: expected a folder"):
        make_synthetic(tmp_path / "file", 1, 1)
    with pytest.raises(UserError, match="got 'blob'"):
        make_shape("blob", np.random.default_rng(0), (0, 0), 10)
