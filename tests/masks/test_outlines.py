"""Outlines of bitmaps, filled again by COCO's own rasteriser."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.masks.coco_api import fill_polygons
from maskrcnn.masks.outlines import bridged, outlines, parts_of


def filled(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(fill_polygons([np.array(p) for p in polygons], size).any(0))


def from_its_first(ring: list[float]) -> list[float]:
    """The ring from its upper left corner on."""
    corners = np.reshape(ring, (-1, 2))
    return np.roll(corners, -int(np.lexsort(corners.T)[0]), axis=0).ravel().tolist()


def test_a_pixel_is_the_square_around_it() -> None:
    assert outlines(np.array([[0, 0], [0, 1]])) == [[1, 1, 2, 1, 2, 2, 1, 2]]
    assert outlines(np.ones((1, 2)), (10, 20)) == [[10, 20, 12, 20, 12, 21, 10, 21]]


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((3, 4))) == []
    assert outlines(np.zeros((0, 0))) == []


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_touch_at_a_corner_are_two_parts(turned) -> None:
    mask = np.eye(2)[:, ::-1] if turned else np.eye(2)
    assert sorted(len(part) for part in outlines(mask)) == [8, 8]


def test_a_hole_is_filled_and_the_largest_part_comes_first() -> None:
    mask = np.zeros((9, 9), bool)
    mask[0, 0] = True
    mask[2:8, 2:8] = True
    mask[4:6, 4:6] = False
    found = outlines(mask)
    assert found == [[2, 2, 8, 2, 8, 8, 2, 8], [0, 0, 1, 0, 1, 1, 0, 1]]


@pytest.mark.parametrize("seed", range(20))
def test_what_outlines_enclose_is_the_mask(seed) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 40, 2)
    noise = ndimage.gaussian_filter(rng.random((h, w)), rng.uniform(0, 3)) if seed % 2 else rng.random((h, w))
    mask = noise > np.quantile(noise, rng.uniform(0.1, 0.9))
    if not mask.any():
        mask[0, 0] = True
    holes_filled = ndimage.binary_fill_holes(mask, np.ones((3, 3)))  # a hole is open at its corners, too
    parts = outlines(mask)
    _, count = ndimage.label(mask)
    assert len(parts) == count
    assert np.array_equal(filled(parts, (int(h), int(w))), holes_filled)
    with_holes = [bridged(part) for part in parts_of(mask)]
    assert np.array_equal(filled(with_holes, (int(h), int(w))), mask)


def test_a_part_has_its_own_holes_and_not_those_of_the_part_around_it() -> None:
    mask = np.ones((9, 9), bool)
    mask[1:8, 1:8] = False
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    outer, inner = ([from_its_first(ring) for ring in part] for part in parts_of(mask))
    assert outer == [[0, 0, 9, 0, 9, 9, 0, 9], [1, 1, 1, 8, 8, 8, 8, 1]]
    assert inner == [[2, 2, 7, 2, 7, 7, 2, 7], [4, 4, 4, 5, 5, 5, 5, 4]]


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_a_simpler_outline_stays_within_its_tolerance(tolerance) -> None:
    y, x = np.mgrid[:200, :240] + 0.5
    mask = ((x - 120) / 100) ** 2 + ((y - 100) / 70) ** 2 <= 1
    exact, simple = outlines(mask)[0], outlines(mask, tolerance=tolerance)[0]
    assert len(simple) < len(exact) / 5
    changed = filled([simple], mask.shape) ^ mask
    inner = mask & ~_grown(~mask, int(np.ceil(tolerance)) + 1)
    outer = _grown(mask, int(np.ceil(tolerance)) + 1)
    assert changed.any()
    assert not (changed & (inner | ~outer)).any()


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    framed = np.pad(mask, width)
    h, w = mask.shape
    shifts = range(2 * width + 1)
    return np.logical_or.reduce([framed[i : i + h, j : j + w] for i in shifts for j in shifts])
