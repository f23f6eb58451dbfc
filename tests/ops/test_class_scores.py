"""Scores of classes by themselves, and the federated loss: values by hand, and what is drawn how often."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from maskrcnn.ops.class_scores import class_loss, class_scores, federated_classes


def chosen(labels: torch.Tensor, frequency: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    kept = federated_classes(labels, frequency, count, seed)
    assert kept is not None
    return kept


LOGITS = torch.tensor([[0.0, 2.0, -1.0, 5.0], [1.0, -3.0, 0.5, -5.0], [9.0, 9.0, 9.0, 9.0]])
LABELS = torch.tensor([1, 3, -1])  # the second class, background, a place that is not filled


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_scores_of_classes_by_themselves() -> None:
    assert class_scores(LOGITS, "sigmoid")[0].tolist() == pytest.approx(
        [1 / (1 + math.exp(-x)) for x in (0, 2, -1, 5)]
    )
    assert class_scores(LOGITS, "softmax").sum(1).tolist() == pytest.approx([1, 1, 1])


def test_the_loss_by_hand() -> None:
    # -log of sigmoid(x) is softplus(-x), of one minus it softplus(x). Background's column has no say.
    first = softplus(0) + softplus(-2) + softplus(-1)
    second = softplus(1) + softplus(-3) + softplus(0.5)
    assert class_loss(LOGITS, LABELS, "sigmoid").item() == pytest.approx(first + second)
    kept = torch.tensor([False, True, True])
    expected = first - softplus(0) + second - softplus(1)
    assert class_loss(LOGITS, LABELS, "sigmoid", kept).item() == pytest.approx(expected)


def test_a_softmax_s_loss_is_cross_entropy() -> None:
    expected = F.cross_entropy(LOGITS[:2], LABELS[:2], reduction="sum")
    assert class_loss(LOGITS, LABELS, "softmax").item() == expected.item()


def test_places_that_are_not_filled_have_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    class_loss(logits, LABELS, "sigmoid").backward()
    assert logits.grad is not None
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[:2, :3] != 0).all()
    assert (logits.grad[:, 3] == 0).all()


def test_no_count_keeps_all() -> None:
    assert federated_classes(LABELS, torch.ones(3), 0, 0) is None


def test_classes_of_the_batch_are_kept_and_background_is_one_of_the_count() -> None:
    frequency = torch.full((100,), 5.0)
    for seed in range(20):
        kept = chosen(torch.tensor([7, 7, 42, 100, -1]), frequency, 10, seed)
        assert kept.shape == (100,)
        assert kept[[7, 42]].all()
        assert int(kept.sum()) == 9  # the tenth is background
    assert int(chosen(torch.tensor([7, 42]), frequency, 10, 0).sum()) == 10


def test_more_classes_than_the_count_are_all_kept() -> None:
    labels = torch.arange(30)
    kept = chosen(labels, torch.ones(100), 10, 3)
    assert kept.nonzero()[:, 0].tolist() == labels.tolist()


def test_a_class_that_no_image_has_is_not_drawn() -> None:
    frequency = torch.ones(8)
    frequency[3] = 0
    assert not chosen(torch.tensor([0]), frequency, 9, 1)[3]
    assert int(chosen(torch.tensor([0]), frequency, 9, 1).sum()) == 7
    assert chosen(torch.tensor([3]), frequency, 1, 1)[3]  # unless the batch has it after all


def test_a_draw_is_of_its_seed() -> None:
    frequency, labels = torch.arange(1, 201), torch.tensor([200])
    draws = [chosen(labels, frequency, 20, seed).nonzero()[:, 0].tolist() for seed in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]


def test_classes_are_drawn_by_the_root_of_their_frequency() -> None:
    # The first of a draw is class k with probability sqrt(f_k) / sum: 1, 2, 3, 4 of 10.
    frequency, count = torch.tensor([1.0, 4.0, 9.0, 16.0]), 4000
    first = torch.stack([chosen(torch.tensor([4]), frequency, 2, seed) for seed in range(count)])
    share = first.double().mean(0)
    assert int(first.sum()) == count
    # Four standard errors of a share of a half.
    assert share.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=4 * math.sqrt(0.25 / count))
