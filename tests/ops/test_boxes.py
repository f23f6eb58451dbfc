"""Boxes against hand computation and detectron2's unit outputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.ops.boxes import (
    batched_nms,
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    nonempty,
    scale_boxes,
)
from tests.references import read_npz

TEN = (10.0, 10.0, 5.0, 5.0)
ONE = (1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def units(shared: Path) -> dict[str, np.ndarray]:
    return read_npz(shared / "reference" / "detectron2" / "units.npz")


def test_iou_of_half_overlapping_boxes_is_a_third() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([[1 / 3, 0.0, 1.0]]))


def test_iou_of_empty_boxes_is_zero_not_nan() -> None:
    empty = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert box_iou(empty, empty).tolist() == [[0.0]]


def test_clip_and_area() -> None:
    clipped = clip_boxes(torch.tensor([[-5.0, -5.0, 50.0, 20.0], [30.0, 30.0, 40.0, 40.0]]), (10, 25))
    assert clipped.tolist() == [[0.0, 0.0, 25.0, 10.0], [25.0, 10.0, 25.0, 10.0]]
    assert box_area(clipped).tolist() == [250.0, 0.0]
    assert nonempty(clipped).tolist() == [True, False]


def test_scaling_takes_sizes_as_height_width() -> None:
    assert scale_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (10, 20), (20, 10)).tolist() == [
        [0.5, 4.0, 1.5, 8.0]
    ]


@pytest.mark.parametrize(("weights", "key"), [(ONE, "1"), (TEN, "10")])
def test_encoding_equals_detectron2(units: dict[str, np.ndarray], weights: tuple, key: str) -> None:
    source, target = torch.from_numpy(units["box/src"]), torch.from_numpy(units["box/dst"])
    deltas = encode_boxes(source, target, weights)
    np.testing.assert_allclose(deltas, units[f"box/get_deltas_{key}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_boxes(deltas, source, weights), target, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("weights", "key"), [(ONE, "1"), (TEN, "10")])
def test_decoding_equals_detectron2(units: dict[str, np.ndarray], weights: tuple, key: str) -> None:
    source = torch.from_numpy(units["box/src"])
    deltas = torch.from_numpy(units["box/deltas"]).unflatten(1, (2, 4))
    decoded = decode_boxes(deltas, source[:, None], weights).flatten(1)
    np.testing.assert_allclose(decoded, units[f"box/apply_deltas_{key}"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_nms_equals_detectron2(units: dict[str, np.ndarray], threshold: float) -> None:
    boxes, scores, groups = (torch.from_numpy(units[f"nms/{k}"]) for k in ("boxes", "scores", "idxs"))
    assert batched_nms(boxes, scores, groups, threshold).tolist() == units[f"nms/keep_{threshold}"].tolist()


def test_nms_of_nothing() -> None:
    assert len(batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)) == 0


def test_sizes_shrink_without_a_limit_unless_told() -> None:
    box, deltas = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]), torch.tensor([[0.0, 0.0, -9.0, 9.0]])
    free = decode_boxes(deltas, box, ONE)[0]
    limited = decode_boxes(deltas, box, ONE, limit_shrinking=True)[0]
    assert free[2] - free[0] == pytest.approx(1000 * math.exp(-9), abs=1e-4)
    assert limited[2] - limited[0] == pytest.approx(16, abs=1e-3)
    assert (limited[3] - limited[1]).item() == (free[3] - free[1]).item() == pytest.approx(62_500)
