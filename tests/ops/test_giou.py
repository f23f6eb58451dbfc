"""Generalised IoU, by hand."""

from __future__ import annotations

import torch

from maskrcnn.ops.giou import paired_giou


def test_pairs_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 2, 1], [1, 1, 1, 1]])
    b = torch.tensor([[0.0, 0, 2, 2], [3, 0, 4, 1], [1, 0, 3, 1], [1, 1, 1, 1]])
    # the same; apart, with half of the hull empty; a third shared, the hull full; no extent at all
    expected = torch.tensor([1.0, 0.0 - 2 / 4, 1 / 3, 0.0])
    torch.testing.assert_close(paired_giou(a, b), expected)


def test_it_pulls_boxes_together_that_do_not_meet() -> None:
    a = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    (1 - paired_giou(a, torch.tensor([[3.0, 0, 4, 1]]))).sum().backward()
    assert a.grad is not None
    assert a.grad[0, 2] < 0  # its right side moves to the right
