"""Pairs and their matching are COCO's: the AP read off them is pycocotools', on random cases with ties and crowds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn.errors import UserError
from maskrcnn.evaluation.pairs import IGNORED, IOUS, WRONG, pair
from maskrcnn.evaluation.ranking import average_precision, mean_ap, rank
from maskrcnn.evaluation.truth import load_truth
from tests.coco_cases import pycocotools_numbers, random_case
from tests.evaluation.small import data_set, pairs_of, results

HALF = np.array([0.5])


@pytest.mark.parametrize("library", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_pycocotools_on_random_cases(kind: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_COCO_BACKEND", library)
    for seed in range(40):
        truth, found = random_case(seed)
        pairs = pair(load_truth(truth), found, kind)
        aps = mean_ap(rank(pairs, [p.match(IOUS) for p in pairs.pictures]))
        expected = pycocotools_numbers(truth, found, kind)[0]
        assert (np.nan_to_num(aps, nan=-1.0).mean()) == pytest.approx(expected, abs=1e-12), seed


@pytest.mark.parametrize(("kind", "ap"), [("bbox", 0.5045806987249628), ("segm", 0.3195452758576433)])
def test_ap_is_the_published_one(shared: Path, kind: str, ap: float) -> None:
    folder = shared / "data/coco_eval"
    word = "bbox" if kind == "bbox" else "segm"
    found = json.loads((folder / f"instances_val2014_fake{word}100_results.json").read_text())
    pairs = pair(load_truth(folder / "instances_val2014_100.json"), found, kind)
    aps = mean_ap(rank(pairs, [p.match(IOUS) for p in pairs.pictures]))
    assert aps.mean() == pytest.approx(ap, abs=1e-10)


def test_better_scores_choose_first_and_crowds_take_the_rest() -> None:
    objects = [(1, 1, (0, 0, 10, 10)), (1, 1, (40, 0, 30, 30))]
    found = [
        (1, 1, 0.5, (0, 0, 10, 10)),  # the object exactly, but second
        (1, 1, 0.9, (0, 0, 10, 8)),
        (1, 1, 0.4, (45, 5, 5, 5)),  # in the crowd
        (1, 2, 0.3, (45, 5, 5, 5)),  # in a crowd of another class
    ]
    (p,) = pairs_of(objects, found, crowds=[1]).pictures
    assert p.scores.tolist() == [0.9, 0.5, 0.4, 0.3]
    assert p.match(HALF).tolist() == [[0, WRONG, IGNORED, WRONG]]
    assert p.match(np.array([0.8, 0.9])).tolist() == [[0, -1, -2, -1], [-1, 0, -2, -1]]


def test_only_the_best_detections_of_a_class_count() -> None:
    found = [(1, 1, s, (0, 0, 9, 9)) for s in (0.1, 0.3, 0.2)] + [(1, 2, 0.05, (0, 0, 9, 9))]
    (p,) = pair(load_truth(data_set([(1, 1, (0, 0, 9, 9))])), results(found), "bbox", 2).pictures
    assert p.scores.tolist() == [0.3, 0.2, 0.05]


def test_average_precision_by_hand() -> None:
    # Right, wrong, right of 2 objects: precision 1 up to recall .5 (51 levels), then 2/3 (50 levels).
    right = np.array([True, False, True])
    assert average_precision(right, ~right, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert np.isnan(average_precision(right, ~right, 0))
    # Two weightings at once: without the wrong one the AP is 1; twice the first picture's is the same as once.
    weights = np.array([[1, 0, 1], [2, 0, 2]])
    assert average_precision(weights, 0 * weights, np.array([2, 4])) == pytest.approx([1, 1])


def test_results_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(UserError, match=r"^b\.json: entry 0: image_id 7 is not in data"):
        pair(
            load_truth(data_set([])),
            [{**results([(1, 1, 0.5, (0, 0, 9, 9))])[0], "image_id": 7}],
            "segm",
            name="b.json",
        )
