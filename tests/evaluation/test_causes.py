"""Causes of errors: a case of each worked out by hand, and hotcoco's TIDE on random data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from maskrcnn.evaluation.causes import CAUSES, NONE, find_causes, worst_pictures
from maskrcnn.evaluation.pairs import Pairs, pair
from maskrcnn.evaluation.truth import load_truth
from tests.coco_cases import random_case
from tests.evaluation.small import pairs_of

A, B, C = (0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10)


@pytest.fixture
def pairs() -> Pairs:
    """Cats A, B and C and a dog, of which A alone is found rightly."""
    objects = [(1, 1, A), (1, 1, B), (1, 1, C), (1, 2, (0, 40, 10, 10))]
    found = [
        (1, 1, 0.9, A),
        (1, 1, 0.8, (0, 0, 10, 9)),  # A again
        (1, 1, 0.7, (20, 0, 10, 4)),  # B, but IoU 0.4
        (1, 1, 0.6, (20, 0, 10, 3)),  # B, worse and less sure
        (1, 2, 0.5, C),  # C as a dog
        (1, 2, 0.4, (20, 0, 10, 2)),  # B as a dog, IoU 0.2
        (1, 1, 0.3, (60, 40, 10, 10)),  # nothing
    ]
    return pairs_of(objects, found)


def test_every_cause_by_hand(pairs: Pairs) -> None:
    causes = find_causes(pairs)
    errors = causes.pictures[0]
    said = ["" if c == NONE else CAUSES[c] for c in errors.cause]
    assert said == ["", "doubled", "place", "place", "class", "both", "background"]
    assert errors.target.tolist() == [-1, 0, 1, 1, 2, 1, -1]
    assert errors.mended.tolist() == [False, False, True, False, True, False, False]
    assert errors.missed.tolist() == [False, False, False, True]
    assert causes.counts == {"class": 1, "place": 2, "both": 1, "doubled": 1, "background": 1, "missed": 1}


def test_costs_by_hand(pairs: Pairs) -> None:
    causes = find_causes(pairs)
    # Cats: the first of 3 objects at precision 1: 34 of 101 recall levels. Dogs: none.
    ap = 34 / 101 / 2
    assert causes.ap50 == pytest.approx(ap)
    # Place: B found third, behind a false one: 2/3 at recall up to 2/3, 33 levels more.
    assert causes.costs["place"] == pytest.approx((34 + 33 * 2 / 3) / 101 / 2 - ap)
    # Class: C found as the fifth cat, 2 right of 5: 0.4 on 33 levels more.
    assert causes.costs["class"] == pytest.approx((34 + 33 * 2 / 5) / 101 / 2 - ap)
    # What is false after the last right one costs nothing; nor does the one dog, missed, who had no AP to lose.
    assert [causes.costs[c] for c in ("both", "doubled", "background", "missed")] == [0, 0, 0, 0]
    assert causes.extra["false detections"] == 0
    assert causes.extra["not found"] == pytest.approx(1 / 2 - ap)


def test_a_class_of_which_nothing_is_found_costs_what_it_is_worth() -> None:
    objects = [(1, 1, A), (1, 2, C)]
    causes = find_causes(pairs_of(objects, [(1, 1, 0.9, A)]))
    assert (causes.ap50, causes.costs["missed"]) == pytest.approx((0.5, 0.5))
    causes = find_causes(pairs_of(objects, []))
    assert (causes.ap50, causes.costs["missed"], causes.extra["not found"]) == pytest.approx((0, 1, 1))


def test_what_lies_in_a_crowd_is_no_error() -> None:
    causes = find_causes(pairs_of([(1, 1, A)], [(1, 1, 0.9, (0, 0, 5, 5))], crowds=[0]))
    assert sum(causes.counts.values()) == 0
    assert np.isnan(causes.ap50)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_counts_and_costs_are_hotcoco_s(kind: str) -> None:
    """But for crowds, which hotcoco counts among the objects when it looks for causes, and for classes of which nothing
    is found, which stay in its mean when nothing is asked for any more: TIDE's own code does neither.
    """
    hotcoco = pytest.importorskip("hotcoco")
    names = {
        "Cls": "class",
        "Loc": "place",
        "Both": "both",
        "Dupe": "doubled",
        "Bkg": "background",
        "Miss": "missed",
    }
    extra = {"FP": "false detections", "FN": "not found"}
    compared = 0
    for seed in range(120):
        truth, found = distinct(*random_case(seed), seed)
        there, seen = ({e["category_id"] for e in entries} for entries in (truth["annotations"], found))
        if not there or not there <= seen:
            continue
        causes = find_causes(pair(load_truth(truth), found, kind))
        coco = hotcoco.COCO(copy.deepcopy(truth))
        dropped = "segmentation" if kind == "bbox" else "bbox"
        results = coco.loadRes([{k: v for k, v in r.items() if k != dropped} for r in copy.deepcopy(found)])
        evaluator = hotcoco.COCOeval(coco, results, kind)
        evaluator.evaluate()
        expected = evaluator.tide_errors()
        assert causes.counts == {names[k]: v for k, v in expected["counts"].items()}, seed
        assert causes.ap50 == pytest.approx(expected["ap_base"], abs=1e-9)
        for key, name in names.items():
            assert causes.costs[name] == pytest.approx(expected["delta_ap"][key], abs=1e-9), (seed, name)
        for key, name in extra.items():
            assert causes.extra[name] == pytest.approx(expected["delta_ap"][key], abs=1e-9), (seed, name)
        compared += 1
    assert compared > 30


def distinct(
    truth: dict[str, Any], found: list[dict[str, Any]], seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The case without crowds and with scores of which no two are equal: their order is nobody's rule."""
    rng = np.random.default_rng(seed)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    return truth, [{**r, "score": float(rng.random())} for r in found]


def test_the_worst_pictures_have_the_most_and_surest_errors() -> None:
    objects = [(image, 1, A) for image in (1, 2, 3)]
    found = [(1, 1, 0.6, B), (2, 1, 0.9, B), (2, 1, 0.3, C), (3, 1, 0.2, B), (3, 1, 0.9, A)]
    pairs = pairs_of(objects, found, num_images=3)
    worst = worst_pictures(pairs, find_causes(pairs), np.array([0.5, 0.5]), 2)
    assert [(k, its.tolist()) for k, its in worst["background"]] == [(1, [0]), (0, [0])]
    assert [(k, its.tolist()) for k, its in worst["missed"]] == [(0, [0]), (1, [0])]
    assert worst["class"] == []
