"""`Instances` hold what belongs together: fields of one length and of their own shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn import Instances, UserError
from maskrcnn.masks import PredictedMasks

BOXES = torch.tensor([[0.0, 0, 20, 20], [5, 5, 30, 40]])
GOOD = {"boxes": BOXES, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 2])}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "boxes",
            BOXES[:, :3],
            r"boxes: expected a tensor \(N, 4\) with N = 2 boxes, got one of shape \(2, 3\)",
        ),
        ("boxes", BOXES.numpy(), r"boxes: expected a tensor \(N, 4\) .*, got ndarray"),
        (
            "scores",
            torch.rand(3),
            r"scores: expected a tensor \(N\) with N = 2 boxes, got one of shape \(3,\)",
        ),
        ("labels", torch.zeros(2, 1), r"labels: .* got one of shape \(2, 1\)"),
        ("labels", [0, 2], r"labels: expected a tensor \(N\) .*, got list"),
        ("keypoints", torch.zeros(2, 17, 2), r"keypoints: expected a tensor \(N, P, 3\) .* \(2, 17, 2\)"),
        (
            "masks",
            PredictedMasks(torch.rand(1, 28, 28), BOXES[:1], (48, 64)),
            "one for each of 2 boxes, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_told(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Instances((48, 64), **(GOOD | {field: value}))  # type: ignore[arg-type]


def test_what_fits_is_taken() -> None:
    masks = PredictedMasks(torch.rand(2, 28, 28), BOXES, (48, 64))
    instances = Instances((48, 64), **GOOD, masks=masks, keypoints=torch.zeros(2, 17, 3))  # pyright: ignore[reportArgumentType]
    assert len(instances[1]) == 1
    assert np.asarray(instances.masks).shape == (2, 48, 64)
    none = Instances((48, 64), BOXES[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert len(none) == 0
