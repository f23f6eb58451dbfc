"""Boundary AP on squares whose boundaries are counted by hand, with the paper's 2 % of the diagonal.

A square of side 10 and the same square one pixel to the right: the masks share 90 of 110 pixels, IoU 0.818.
"""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.evaluation.boundary import boundaries, boundary_iou, boundary_matches, width
from maskrcnn.evaluation.ranking import mean_ap, rank
from maskrcnn.masks import rle_decode, rle_encode
from tests.evaluation.small import pairs_of, shape

SQUARE, MOVED = (20, 20, 10, 10), (21, 20, 10, 10)


@pytest.mark.parametrize(("size", "pixels"), [((60, 80), 2), ((30, 40), 1), ((3, 4), 1), ((480, 640), 16)])
def test_width_is_two_per_cent_of_the_diagonal(size: tuple[int, int], pixels: int) -> None:
    assert width(size) == pixels


@pytest.mark.parametrize(
    ("size", "shared", "union"),
    [
        # Width 1: rings of 36 pixels; 9 shared in the upper and in the lower row, none in the columns.
        ((30, 40), 18, 54),
        # Width 2: rings of 64; 9 shared in each of four rows, 2 (one in each wall) in each of the six others.
        ((60, 80), 48, 80),
    ],
)
def test_overlap_by_hand(size: tuple[int, int], shared: int, union: int) -> None:
    box, moved = ((5, 5, 10, 10), (6, 5, 10, 10)) if size == (30, 40) else (SQUARE, MOVED)
    (p,) = pairs_of([(1, 1, box)], [(1, 1, 0.9, moved)], size=size).pictures
    assert p.iou[0, 0] == pytest.approx(90 / 110)
    assert boundary_iou(p)[0, 0] == pytest.approx(shared / union)


def test_ap_by_hand() -> None:
    pairs = pairs_of([(1, 1, SQUARE)], [(1, 1, 0.9, MOVED)])
    masks = mean_ap(rank(pairs, [p.match(np.linspace(0.5, 0.95, 10)) for p in pairs.pictures]))
    edges = mean_ap(rank(pairs, boundary_matches(pairs)))
    assert masks.mean() == pytest.approx(0.7)  # IoU 0.818: up to 0.80
    assert edges.mean() == pytest.approx(0.3)  # 48 / 80: up to 0.60


def test_the_overlap_of_masks_holds_where_it_is_the_smaller() -> None:
    # In a large mask a hole takes no boundary: a thin frame has the solid square's boundary, and 64 of its 100 pixels.
    bitmap = rle_decode(shape(SQUARE)["segmentation"]).copy()
    bitmap[22:28, 22:28] = 0
    pairs = pairs_of([(1, 1, SQUARE)], [(1, 1, 0.9, SQUARE)])
    p = pairs.pictures[0]
    p.found[0], p.iou[0, 0] = rle_encode(bitmap), 0.64
    assert boundary_iou(p)[0, 0] == pytest.approx(0.64)


def test_a_picture_s_border_is_outline() -> None:
    size = (60, 80)
    full = rle_encode(np.ones(size, np.uint8))
    (ring,) = boundaries([full], 2)
    expected = np.ones(size, np.uint8)
    expected[2:-2, 2:-2] = 0
    assert (rle_decode(ring) == expected).all()


def test_boundaries_are_those_of_erosion_by_squares() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    for distance in (1, 2, 5):
        mask = ndimage.binary_opening(rng.random((40, 50)) < 0.85, np.ones((3, 3)))
        (ring,) = boundaries([rle_encode(mask.astype(np.uint8))], distance)
        inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)
        assert (rle_decode(ring) == (mask & ~inner)).all()


def test_an_empty_mask_has_an_empty_boundary() -> None:
    (ring,) = boundaries([rle_encode(np.zeros((5, 7), np.uint8))], 1)
    assert rle_decode(ring).sum() == 0
