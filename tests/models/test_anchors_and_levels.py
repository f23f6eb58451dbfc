"""Anchors and the RoIs' levels against detectron2's unit outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.models.anchors import cell_anchors, grid_anchors
from maskrcnn.models.pooling import assign_levels
from tests.references import read_npz

RATIOS = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def units(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "detectron2" / "units.npz")


@pytest.mark.parametrize("level", range(5))
def test_cell_anchors_of_a_pyramid(units: dict[str, np.ndarray], level: int) -> None:
    np.testing.assert_allclose(
        cell_anchors((32.0 * 2**level,), RATIOS), units[f"anchors/FPN/cell_{level}"], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["C4", "DC5"])
def test_cell_anchors_of_one_level(units: dict[str, np.ndarray], name: str) -> None:
    sizes = (32.0, 64.0, 128.0, 256.0, 512.0)
    np.testing.assert_allclose(cell_anchors(sizes, RATIOS), units[f"anchors/{name}/cell_0"], rtol=1e-6)


def test_grid_is_ordered_by_row_column_anchor(units: dict[str, np.ndarray]) -> None:
    grid = grid_anchors(cell_anchors((32.0,), RATIOS), (3, 4), int(units["anchors/FPN/strides"][0]))
    np.testing.assert_allclose(grid, units["anchors/FPN/grid_3x4_level0"], rtol=1e-6)


def test_levels_equal_detectron2(units: dict[str, np.ndarray]) -> None:
    levels = assign_levels(torch.from_numpy(units["levels/boxes"]), 2, 5)
    # The reference counts from the first level of the pyramid.
    assert (levels - 2).tolist() == units["levels/out_2_5_224_4"].tolist()


def test_a_box_of_the_canonical_size_is_on_level_4() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 111.9, 111.9], [0.0, 0.0, 5000.0, 5000.0], [0.0] * 4]
    )
    assert assign_levels(boxes, 2, 5).tolist() == [4, 2, 5, 2]
