"""Suppression by the GPU's kernels, in Triton's interpreter, beside torchvision's on the CPU."""

from __future__ import annotations

import pytest

from tests.alone import run_interpreted

CASES = """
import torch
from maskrcnn.ops import suppression_triton
from maskrcnn.ops.suppression import suppress

torch.manual_seed(0)
for B, N, whole, ties in ((1, 70, False, False), (2, 45, True, True), (2, 32, False, True), (1, 3, True, False)):
    corner = torch.rand(B, N, 2) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(B, N, 2) * 30], -1)
    boxes = boxes.round() if whole else boxes
    scores = torch.rand(B, N)
    scores = (scores * 8).round() / 8 if ties else scores
    scores[torch.rand(B, N) < 0.15] = -torch.inf
    groups = torch.randint(0, 3, (B, N))
    for threshold, limit in ((0.3, 5), (0.5, 40), (0.7, 100)):
        ours = suppression_triton.suppress(boxes, scores, groups, threshold, limit)
        assert torch.equal(ours, suppress(boxes, scores, groups, 3, threshold, limit)), (N, threshold, limit)
# nothing to choose from, nothing asked for
none = torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64)
assert suppression_triton.suppress(*none, 0.5, 3).tolist() == [[-1] * 3] * 2
assert suppression_triton.suppress(boxes, scores, groups, 0.5, 0).shape == (1, 0)
left_out = torch.full_like(scores, -torch.inf)
assert suppression_triton.suppress(boxes, left_out, groups, 0.5, 2).tolist() == [[-1, -1]]
print("done")
"""


@pytest.mark.slow
def test_the_kernels_choose_what_torchvision_chooses() -> None:
    pytest.importorskip("triton")
    run_interpreted(CASES)
