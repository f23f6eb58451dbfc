"""Calibration: the error by hand and hotcoco's, and a temperature that finds the one that was put in."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from maskrcnn.evaluation.calibration import (
    Scored,
    calibrate,
    expected_error,
    gather,
    reliability,
    temperature,
)
from maskrcnn.evaluation.pairs import pair
from maskrcnn.evaluation.ranking import rank
from maskrcnn.evaluation.truth import load_truth
from maskrcnn.ops.temperature import tempered
from tests.coco_cases import random_case


def test_error_by_hand() -> None:
    scores = np.array([0.95, 0.85, 0.85, 0.32, 1.0])
    right = np.array([True, True, False, False, True])
    # Bins: 0.3 to 0.4: gap 0.32 of one; 0.8 to 0.9: 0.85 against a half, of two; 0.9 to 1: 0.975 against 1, of two.
    assert expected_error(scores, right) == pytest.approx((0.32 + 2 * 0.35 + 2 * 0.025) / 5)
    score, share, count = reliability(scores, right)
    assert count.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 2, 2]
    assert share[8] == 0.5
    assert score[9] == pytest.approx(0.975)
    assert expected_error(scores[:0], right[:0]) == -1


def test_error_is_hotcoco_s() -> None:
    hotcoco = pytest.importorskip("hotcoco")
    for seed in range(30):
        truth, found = random_case(seed)
        if not found:
            continue
        for annotation in truth["annotations"]:
            annotation["iscrowd"] = 0
        coco = hotcoco.COCO(copy.deepcopy(truth))
        boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in found]
        evaluator = hotcoco.COCOeval(coco, coco.loadRes(boxes), "bbox")
        evaluator.evaluate()
        pairs = pair(load_truth(truth), found, "bbox")
        scored = gather(rank(pairs, [p.match(np.array([0.5])) for p in pairs.pictures]))
        assert expected_error(scored.scores, scored.right) == pytest.approx(evaluator.calibration()["ece"])


@pytest.mark.parametrize("value", [0.5, 1.0, 2.5])
def test_a_temperature_is_found_again(value: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.02, 0.98, 20_000)
    right = rng.random(len(true)) < true
    scores = tempered(true, 1 / value)  # too sure of itself above 1
    assert temperature(scores, right) == pytest.approx(value, rel=0.05)
    found = calibrate(Scored(scores, right, rng.integers(0, 50, len(true))))
    assert found.error_after < 0.02
    if value != 1:
        assert found.error > 0.05


def test_a_temperature_keeps_the_order_and_the_ends() -> None:
    scores = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    colder = tempered(scores, 2.0)
    assert colder[[0, 2, 4]].tolist() == [0, 0.5, 1]
    assert (np.diff(colder) > 0).all()
    assert colder[3] == pytest.approx(0.75)  # odds of 9 become 3
    assert tempered(scores, 1.0) == pytest.approx(scores)


def test_too_few_detections_or_all_right_have_none() -> None:
    assert temperature(np.full(5, 0.5), np.array([True, False, True, True, False])) == 1
    assert temperature(np.full(50, 0.5), np.ones(50, bool)) == 1
    empty = calibrate(Scored(np.zeros(0), np.zeros(0, bool), np.zeros(0, int)))
    assert (empty.error, empty.error_after, empty.temperature) == (-1, -1, 1)


def test_scores_that_are_no_shares_have_none() -> None:
    found = calibrate(Scored(np.linspace(0, 95, 40), np.arange(40) % 2 == 0, np.arange(40)))
    assert (found.error, found.temperature, found.count.sum()) == (-1, 1, 0)
