"""Bitmaps read by the GPU's kernel, in Triton's interpreter, beside RoIAlign of bitmaps on the CPU."""

from __future__ import annotations

import pytest

from tests.alone import run_interpreted

MOST_APART = 0.002  # of all cells: those whose mean is a half to the last bit

CASES = """
import numpy as np, torch
from maskrcnn.masks import InstanceMasks, ground_truth

dice = np.random.default_rng(0)
y, x = np.mgrid[:60, :90]
blobs = [(x - a) ** 2 / c**2 + (y - b) ** 2 / d**2 < 1 for a, b, c, d in ((40, 30, 25, 20), (80, 10, 20, 16))]
blobs[1] &= dice.random((60, 90)) > 0.1
bitmaps = InstanceMasks.from_bitmaps(np.stack(blobs).astype(np.uint8))
drawn = [{"size": [60, 90], "counts": [30, 20, 40, 25, 5285]}, [[10, 10, 40, 10, 40, 50, 10, 50]]]
mixed = InstanceMasks.from_coco(drawn, (60, 90))
for masks, filled in ((bitmaps, False), (bitmaps.resized(1.3, 0.8), False), (bitmaps.rotated90(60, 90, 1), False),
                      (bitmaps.flipped_horizontal(90), False), (mixed, False), (mixed.resized(0.7, 0.7), True)):
    index = torch.from_numpy(dice.integers(-1, 2, 9))
    boxes = masks.tight_boxes((0.0, 0.0, 200.0, 200.0))[index.clamp(min=0)]
    boxes += torch.from_numpy(dice.normal(0, 3, (9, 4))).float()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes[4, 2] = boxes[4, 0]  # no box at all
    expected = masks.rasterize(boxes, index, 7, filled)
    ground_truth.use_triton = lambda x: True
    found = masks.rasterize(boxes, index, 7, filled)
    ground_truth.use_triton = lambda x: False
    assert found.shape == expected.shape and found.dtype == torch.bool
    assert expected.any() and not found[index < 0].any() and not found[4].any()
    print("apart", float((found != expected).float().mean()))
print("done")
"""


@pytest.mark.slow
def test_the_kernel_reads_as_the_cpu_does() -> None:
    pytest.importorskip("triton")
    lines = run_interpreted(CASES)
    shares = [float(line.split()[1]) for line in lines if line.startswith("apart")]
    assert len(shares) == 6
    assert max(shares) < MOST_APART, shares
