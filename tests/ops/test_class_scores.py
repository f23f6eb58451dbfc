"""Sigmoid scores, their loss and the classes that a federated one keeps: by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.class_scores import class_loss, class_scores, federated_classes

ONE_IMAGE: Any = (0, (), (0,))  # all classes kept


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(logits: Tensor, labels: Tensor, kept: list[set[int]], image: Tensor) -> float:
    """Sum -log p of each RoI's own class and -log(1 - p) of the others, of the classes kept of its image."""
    total = 0.0
    for row, label, i in zip(logits.tolist(), labels.tolist(), image.tolist(), strict=True):
        for k in kept[i] if label >= 0 else ():
            total -= log_sigmoid(row[k] if k == label else -row[k])
    return total


def test_scores_are_of_each_class_by_itself() -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.log(3), 99.0]])
    torch.testing.assert_close(class_scores(logits, "sigmoid"), torch.tensor([[0.5, 0.75, 0.25, 1.0]]))
    torch.testing.assert_close(
        class_scores(torch.tensor([[[0.0, math.log(3)]]]), "softmax"), torch.tensor([[[0.25, 0.75]]])
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_loss_by_hand(dtype: torch.dtype, tolerance: float) -> None:
    """p of the two classes 1/2 and 3/4; an object of class 1, background, and a place that does not count."""
    logits = torch.tensor([[0.0, math.log(3), 5.0]], dtype=dtype).repeat(3, 1)
    labels, image = torch.tensor([1, 2, -1]), torch.zeros(3, dtype=torch.int64)
    found = class_loss(logits, labels, "sigmoid", image, *ONE_IMAGE)
    assert found.dtype == dtype
    assert found.item() == pytest.approx(
        -math.log(1 / 2) - math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 4), rel=tolerance
    )


def test_softmax_is_the_loss_of_before() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -1, 3])
    found = class_loss(logits, labels, "softmax", torch.zeros(6, dtype=torch.int64), *ONE_IMAGE)
    torch.testing.assert_close(
        found, F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="sum")
    )


def test_background_s_column_learns_nothing() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    class_loss(
        logits, torch.tensor([0, 1, 2, 2]), "sigmoid", torch.zeros(4, dtype=torch.int64), *ONE_IMAGE
    ).backward()
    assert logits.grad is not None
    assert not logits.grad[:, 2].any()
    assert logits.grad[:, :2].all()


def test_federated_loss_is_of_the_kept_classes_alone() -> None:
    """Image 0 has classes 1 and 4 and background, four labels with one that is drawn: class 3, for the others have no
    image. Image 1 has class 0 and no background, and all four with images are kept.
    """
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, image = torch.tensor([1, 5, 4, -1, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1])
    found = class_loss(logits, labels, "sigmoid", image, 4, (0, 7, 0, 5, 7), (3, 4))
    expected = by_hand(logits, labels, [{1, 3, 4}, {0, 1, 3, 4}], image)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_has_the_losses_of_its_images_whatever_process_has_them() -> None:
    logits, labels = torch.randn(40, 31), torch.arange(40) % 31
    image, counts, seeds = torch.arange(40) // 10, tuple(range(30)), (5, 6, 7, 8)
    whole = class_loss(logits, labels, "sigmoid", image, 20, counts, seeds)
    parts = [
        class_loss(logits[m], labels[m], "sigmoid", image[m] - i, 20, counts, seeds[i : i + 2])
        for i in (0, 2)
        for m in [(image == i) | (image == i + 1)]
    ]
    torch.testing.assert_close(whole, parts[0] + parts[1])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("num_present", [0, 3, 9, 12])
def test_as_many_are_kept_as_asked_for_or_as_are_present(num_present: int, background: bool) -> None:
    """Background counts as one: detectron2 draws 50 less the labels that the RoIs have."""
    present = torch.zeros(1, 21, dtype=torch.bool)
    present[0, :num_present] = True
    present[0, 20] = background
    for seed in range(20):
        kept = federated_classes(present, torch.ones(20), 10, (seed,))
        assert kept[0, :num_present].all()
        assert kept.sum().item() == max(10 - background, num_present)


def test_classes_without_images_are_not_drawn() -> None:
    kept = federated_classes(
        torch.zeros(50, 6, dtype=torch.bool), torch.tensor([1.0, 0, 2, 0, 3]), 4, range(50)
    )
    assert (kept == torch.tensor([True, False, True, False, True])).all()


def test_classes_are_drawn_by_the_root_of_their_images() -> None:
    """16, 4 and 1 images: 4, 2 and 1 of 7. Two of them: the first by these, the second by what is left."""
    none, weights = torch.zeros(40_000, 4, dtype=torch.bool), torch.tensor([16.0, 4.0, 1.0]).sqrt()
    one = federated_classes(none, weights, 1, range(40_000))
    assert one.float().mean(0).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.01)
    two = federated_classes(none, weights, 2, range(40_000))
    pairs = [(two[:, a] & two[:, b]).float().mean().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    by_turns = [
        4 / 7 * 2 / 3 + 2 / 7 * 4 / 5,
        4 / 7 * 1 / 3 + 1 / 7 * 4 / 6,
        2 / 7 * 1 / 5 + 1 / 7 * 2 / 6,
    ]
    assert sum(by_turns) == pytest.approx(1)
    assert pairs == pytest.approx(by_turns, abs=0.01)


def test_unknown_numbers_of_images_are_all_alike() -> None:
    logits, labels = torch.randn(1, 9), torch.tensor([8])
    image, seeds = torch.zeros(1, dtype=torch.int64), (11,)
    found = class_loss(logits, labels, "sigmoid", image, 4, (), seeds)
    assert found == class_loss(logits, labels, "sigmoid", image, 4, (1,) * 8, seeds)
