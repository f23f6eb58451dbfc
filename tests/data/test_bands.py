"""Statistics of bands, and their augmentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.config import AugmentConfig, InputConfig
from maskrcnn.data.bands import adopt_bands, measure_bands
from maskrcnn.data.coco import CocoData, read_coco
from maskrcnn.data.pixel_steps import Noted
from maskrcnn.data.quality.check import check
from maskrcnn.data.transforms import augment
from maskrcnn.errors import UserError
from maskrcnn.structures import GroundTruth

NO_OBJECTS = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def data_of(folder: Path, pictures: list[np.ndarray]) -> CocoData:
    """Data set of NPY files (H, W, C) with one object each."""
    images, objects = [], []
    for i, pixels in enumerate(pictures):
        np.save(folder / f"{i}.npy", pixels)
        images.append({"id": i, "file_name": f"{i}.npy", "height": pixels.shape[0], "width": pixels.shape[1]})
        ring = [2, 2, 9, 2, 9, 9, 2, 9]
        objects.append({"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 2, 7, 7], "area": 49})
        objects[-1] |= {"iscrowd": 0, "segmentation": [ring]}
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "labels.json").write_text(json.dumps(content))
    return read_coco(folder / "labels.json")


def pictures(count: int = 3, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1000, 3001, (40, 50, channels), dtype=np.uint16) for _ in range(count)]


def test_bands_are_measured(tmp_path: Path) -> None:
    given = pictures()
    given[0][..., 2] = 5
    for picture in given:
        picture[..., 1] = 77
    first, second, third = measure_bands(data_of(tmp_path, given), InputConfig(channels=3))
    values = np.stack(given)[..., 0].ravel()
    low, high = np.percentile(values, (0.1, 99.9))
    assert (first.depth, first.smallest, first.largest) == ("uint16", values.min(), values.max())
    assert (first.low, first.high) == pytest.approx((low, high), rel=1e-6)
    seen = ((values - low) / (high - low) * 255).clip(0, 255)
    assert (first.mean, first.std) == pytest.approx((seen.mean(), seen.std()), rel=1e-4)
    assert first.num_empty == 0
    assert "empty, the same value in all pictures" in second.line()
    assert third.line().endswith("empty in 1 of 3 pictures")


def test_no_data_in_floats_is_left_out_of_the_range(tmp_path: Path) -> None:
    given = [p.astype(np.float32) for p in pictures(2, 1)]
    given[0][:10], given[1][0, 0] = np.nan, np.inf
    (band,) = measure_bands(data_of(tmp_path, given), InputConfig(channels=1))
    assert band.depth == "float32"
    assert 1000 <= band.low < band.high <= 3000
    assert np.isfinite([band.mean, band.std]).all()


def test_normalised_bands_spread_as_the_presets_colours_do(tmp_path: Path) -> None:
    bands = measure_bands(data_of(tmp_path, pictures()), InputConfig(channels=3))
    for usual in (1.0, 57.7):
        config = InputConfig(channels=3, pixel_std=(usual,) * 3)
        adopt_bands(config, bands)
        assert config.depth == "uint16"
        assert config.stretch == tuple((b.low, b.high) for b in bands)
        assert config.pixel_mean == pytest.approx([b.mean for b in bands], abs=1e-3)
        assert [b.std / std for b, std in zip(bands, config.pixel_std)] == pytest.approx([57.7 / usual] * 3)


def test_given_values_are_kept(tmp_path: Path) -> None:
    given: dict = {"stretch": ((0.0, 4000.0),) * 2, "pixel_mean": (1.0, 2.0), "pixel_std": (3.0, 4.0)}
    config = InputConfig(channels=2, **given)
    adopt_bands(config, measure_bands(data_of(tmp_path, pictures(2, 2)), config))
    assert {name: getattr(config, name) for name in given} == given


def test_files_of_other_bands_than_the_first_are_refused_in_one_line(tmp_path: Path) -> None:
    given = pictures()
    given[2] = given[2].astype(np.float32)
    with pytest.raises(UserError, match=r"^[^\n]*2.npy: expected bands of uint16, got float32[^\n]*$"):
        measure_bands(data_of(tmp_path, given), InputConfig(channels=3))


def test_the_check_takes_files_of_the_models_bands_alone(tmp_path: Path) -> None:
    given = pictures()
    given[1] = given[1][..., :2]
    report = check(data_of(tmp_path, given), input=InputConfig(channels=3))
    (line,) = [line for line in report.lines() if "1.npy" in line]
    assert "expected 3 bands (model.input.channels), got an array (40, 50, 2)" in line
    assert report.usable().num_images == 2


def test_colour_changes_each_band_by_itself_within_the_range() -> None:
    image = torch.full((5, 8, 9), 100.0)
    config = AugmentConfig(
        min_sizes=(8,), horizontal_flip=0, brightness=0.5, saturation=0.9, hue=0.4, grayscale=1.0
    )
    changed, _ = augment(image, NO_OBJECTS, config, seed=3)
    factors = changed[:, 0, 0] / 100
    assert (changed == changed[:, :1, :1]).all()
    assert len(set(factors.tolist())) == 5
    assert ((factors >= 0.5) & (factors <= 1.5)).all()
    bright, _ = augment(image * 2.5, NO_OBJECTS, config, seed=3)
    assert bright.max() == 255


def test_contrast_keeps_a_bands_mean() -> None:
    image = torch.rand(3, 8, 8) * 20 + 100
    config = AugmentConfig(min_sizes=(8,), horizontal_flip=0, contrast=0.5)
    changed, _ = augment(image, NO_OBJECTS, config, seed=1)
    torch.testing.assert_close(changed.mean((1, 2)), image.mean((1, 2)))
    ratio = changed.std((1, 2)) / image.std((1, 2))
    assert len({round(r, 4) for r in ratio.tolist()}) == 3


def test_noted_steps_give_what_steps_at_once_give() -> None:
    image = torch.rand(4, 30, 40) * 255
    config = AugmentConfig(min_sizes=(20,), brightness=0.3, contrast=0.3, vertical_flip=0.5, rotate90=0.5)
    for seed in range(4):
        expected, _ = augment(image, NO_OBJECTS, config, seed)
        noted, _ = augment(Noted(image), NO_OBJECTS, config, seed)
        assert noted.shape == expected.shape
        torch.testing.assert_close(noted.taken(torch.device("cpu")), expected)
