"""Polygons filled by the GPU's kernel, in Triton's interpreter, beside COCO's filling on the CPU and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.ops.polygons import edges_of
from tests.alone import run_interpreted

MOST_APART = 0.005  # of all cells: outlines touch cells' centres, and COCO's grid is five times as fine

CASES = """
import numpy as np, torch
from maskrcnn.masks import InstanceMasks
from maskrcnn.masks import ground_truth

dice = np.random.default_rng(0)
def blob(x, y, r, n):
    angle = np.sort(dice.random(n)) * 2 * np.pi
    radius = r * (0.5 + 0.5 * dice.random(n))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).ravel().tolist()

drawn = [[blob(60, 50, 40, 12)], [blob(30, 30, 15, 7), blob(90, 60, 20, 9)], [[10, 10, 40, 10, 40, 50, 10, 50]]]
masks = InstanceMasks.from_coco(drawn, (100, 140))
index = torch.from_numpy(dice.integers(-1, 3, 40))
boxes = masks.tight_boxes((0.0, 0.0, 140.0, 100.0))[index.clamp(min=0)]
boxes += torch.from_numpy(dice.normal(0, 4, (40, 4))).float()
boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
for moved in (masks, masks.resized(1.3, 0.8), masks.flipped_horizontal(140), masks.rotated90(100, 140, 1)):
    expected = moved.rasterize(boxes, index, 28)
    ground_truth.use_triton = lambda x: True
    found = moved.rasterize(boxes, index, 28)
    ground_truth.use_triton = lambda x: False
    assert found.shape == expected.shape and found.dtype == torch.bool
    assert expected.any()
    assert not found[index < 0].any()
    print("apart", float((found != expected).float().mean()))
ground_truth.use_triton = lambda x: True
# by hand: the rectangle 10..40 x 10..50 in the box 0..80 x 0..80 of 8 cells: columns 1 to 3, rows 1 to 4
square = masks.rasterize(torch.tensor([[0.0, 0.0, 80.0, 80.0]]), torch.tensor([2]), 8)[0]
wanted = torch.zeros(8, 8, dtype=torch.bool)
wanted[1:5, 1:4] = True
assert torch.equal(square, wanted), square
# two polygons of one mask that overlap are a union, not a hole
twice = InstanceMasks.from_coco([[[0, 0, 40, 0, 40, 40, 0, 40], [20, 0, 80, 0, 80, 40, 20, 40]]], (80, 80))
assert twice.rasterize(torch.tensor([[0.0, 0.0, 80.0, 40.0]]), torch.tensor([0]), 4).all()
assert masks.rasterize(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)
empty = InstanceMasks.from_coco([], (80, 80))
assert not empty.rasterize(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([-1]), 4).any()
print("done")
"""


@pytest.mark.slow
def test_the_kernel_fills_as_the_cpu_does() -> None:
    pytest.importorskip("triton")
    lines = run_interpreted(CASES)
    shares = [float(line.split()[1]) for line in lines if line.startswith("apart")]
    assert len(shares) == 4
    assert max(shares) < MOST_APART, shares


def test_edges_go_around_each_polygon() -> None:
    points = np.array([[0, 0], [1, 0], [1, 1], [5, 5], [6, 5], [6, 6], [5, 6]], float)
    edges, last, first = edges_of(points, np.array([0, 3, 7]), np.array([0, 2]), 3)
    assert edges[2].tolist() == [1, 1, 0, 0]
    assert edges[6].tolist() == [5, 6, 5, 5]
    assert last.tolist() == [0, 0, 1, 0, 0, 0, 1]
    assert first.tolist() == [0, 3, 3, 7]
