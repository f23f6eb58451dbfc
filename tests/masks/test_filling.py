"""Polygons filled in numpy: cell by cell what the COCO API's libraries fill."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.masks import coco_api
from maskrcnn.masks.filling import fill_polygon

SIZE = (37, 53)


def polygons() -> list[np.ndarray]:
    """Polygons of few corners and many, across the picture's borders too, whole, half and equal corners among them."""
    dice = np.random.default_rng(0)
    made = []
    for n in range(400):
        corners = dice.uniform(-8, 62, (dice.integers(3, 12), 2))
        if n % 4 == 1:
            corners = corners.round()
        elif n % 4 == 2:
            corners = (2 * corners).round() / 2
        elif n % 4 == 3:
            corners[1] = corners[0]
        made.append(corners.ravel())
    return made


@pytest.mark.parametrize("library", coco_api.BACKENDS)
def test_equals_the_coco_api(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
    for polygon, expected in zip(polygons(), coco_api.fill_polygons(polygons(), SIZE), strict=True):
        found = fill_polygon(polygon, SIZE)
        assert np.array_equal(found, expected), polygon


def test_takes_the_libraries_place_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = coco_api.fill_polygons(polygons()[:9], SIZE)
    monkeypatch.delenv("MASKRCNN_COCO_BACKEND", raising=False)
    monkeypatch.setattr(coco_api, "_module", lambda *_: None)
    found = coco_api.fill_polygons(polygons()[:9], SIZE)
    assert np.array_equal(found, expected)
    assert found.any()
