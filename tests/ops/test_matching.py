"""Matching and sampling as claims."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.ops import matching
from maskrcnn.ops.matching import hashed, match_boxes, subsample

GT = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 104.0, 104.0]])
BOXES = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # IoU 1 with the first object
        [0.0, 0.0, 10.0, 5.0],  # 0.5
        [0.0, 0.0, 10.0, 2.0],  # 0.2
        [100.0, 100.0, 110.0, 110.0],  # 0.16 with the second, but no box does better
        [50.0, 50.0, 60.0, 60.0],  # none
    ]
)


def test_labels_by_threshold() -> None:
    matches = match_boxes(BOXES, GT, 0.3, 0.7)
    assert matches.labels.tolist() == [1, -1, 0, 0, 0]
    assert matches.gt_index[:4].tolist() == [0, 0, 0, 1]


def test_no_object_is_left_without_a_box() -> None:
    assert match_boxes(BOXES, GT, 0.3, 0.7, keep_best=True).labels.tolist() == [1, -1, 0, 1, 0]


def test_a_best_box_must_be_good_enough() -> None:
    labels = match_boxes(BOXES, GT, 0.3, 0.7, keep_best=True, min_best=0.3).labels
    assert labels.tolist() == [1, -1, 0, 0, 0]


def test_a_best_box_learns_the_object_that_it_is_the_best_of() -> None:
    """MMDetection's rule, by hand: the box overlaps the first object more, but is the second's best."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    stay = match_boxes(boxes, objects, 0.3, 0.7, keep_best=True, min_best=0.3)
    assert (stay.gt_index.tolist(), stay.labels.tolist()) == ([0, 0], [1, 1])
    move = match_boxes(boxes, objects, 0.3, 0.7, keep_best=True, min_best=0.3, best_reassigns=True)
    assert (move.gt_index.tolist(), move.labels.tolist()) == ([0, 1], [1, 1])


def test_of_two_objects_with_one_best_box_the_last_takes_it() -> None:
    objects = torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 12.0]])
    matches = match_boxes(BOXES[:1], objects, 0.3, 0.7, keep_best=True, best_reassigns=True)
    assert (matches.gt_index.tolist(), matches.labels.tolist()) == ([1], [1])


def test_an_object_outside_every_box_takes_none() -> None:
    far = torch.tensor([[900.0, 900.0, 910.0, 910.0]])
    assert match_boxes(BOXES, far, 0.3, 0.7, keep_best=True).labels.tolist() == [0] * 5


def test_no_objects_make_everything_background() -> None:
    assert match_boxes(BOXES, torch.zeros(0, 4), 0.3, 0.7, keep_best=True).labels.tolist() == [0] * 5


@pytest.mark.parametrize("best_reassigns", [False, True])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, best_reassigns: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(500, 2, generator=generator) * 100, torch.rand(500, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + size], dim=1)

    def matches() -> matching.Matches:
        return match_boxes(boxes, boxes[:30] + 1, 0.3, 0.7, keep_best=True, best_reassigns=best_reassigns)

    whole = matches()
    monkeypatch.setattr(matching, "MAX_PAIRS", 100)
    for a, b in zip(whole, matches(), strict=True):
        assert torch.equal(a, b)


def test_samples_keep_the_fraction_and_fill_up_with_background() -> None:
    labels = torch.tensor([1] * 50 + [0] * 1000 + [-1] * 10)
    index, kind = subsample(labels, 64, 0.25, seed=1)
    assert kind.tolist() == [1] * 16 + [0] * 48
    assert torch.equal(labels[index], kind)
    assert len(index.unique()) == 64
    few = torch.tensor([1, 0, 0, 1, -1])
    index, kind = subsample(few, 64, 0.5, seed=1)
    assert kind.tolist() == [1, 1, 0, 0, -1]
    assert sorted(index[:2].tolist()) == [0, 3]
    assert sorted(index[2:4].tolist()) == [1, 2]
    index, kind = subsample(few, 3, 0.34, seed=1)
    assert torch.equal(few[index], kind)
    assert kind.tolist() == [1, 0, 0]
    assert subsample(few, 3, 0.0, seed=1)[1].tolist() == [0, 0, -1]


def test_boxes_are_drawn_by_the_numbers_that_they_are_given() -> None:
    """Places that are not filled do not change which of the others are drawn."""
    labels = (torch.arange(300) % 7 == 0).long()
    index, kind = subsample(labels, 64, 0.25, seed=3)
    there = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.5
    places = there.nonzero()[:300, 0]
    spread = torch.full((1000,), -1)
    spread[places] = labels
    found, same = subsample(spread, 64, 0.25, seed=3, number=there.cumsum(0) - 1)
    assert torch.equal(found, places[index])
    assert torch.equal(same, kind)


def test_the_draw_is_the_seeds_alone_and_uniform() -> None:
    index = torch.arange(1000)
    assert torch.equal(hashed(index, 7), hashed(index, 7))
    assert not torch.equal(hashed(index, 7).argsort(), hashed(index, 8).argsort())
    # Every index comes first about equally often: the mean rank of the first over many seeds is the middle.
    ranks = torch.stack([hashed(index, seed).argsort().argsort() for seed in range(400)]).double()
    assert (ranks.mean(0) - 499.5).abs().max() < 5 * 288.7 / 400**0.5  # five standard errors


def test_large_seeds_are_taken() -> None:
    assert len(hashed(torch.arange(10), (1 << 63) - 1).unique()) == 10
