"""Thresholds and counts, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.evaluation.pairs import Pairs
from maskrcnn.evaluation.ranking import Ranking, rank
from maskrcnn.evaluation.thresholds import NO_THRESHOLD, at_threshold, count_objects, recommended
from tests.evaluation.small import pairs_of

A, B, C, NOWHERE = (0, 0, 10, 10), (20, 0, 10, 10), (40, 0, 10, 10), (0, 40, 10, 10)
HALF = np.array([0.5])


def ranked(pairs: Pairs) -> list[Ranking]:
    return rank(pairs, [p.match(HALF) for p in pairs.pictures])


@pytest.fixture
def pairs() -> Pairs:
    """Cats: right at 0.9, wrong at 0.8, right at 0.6, wrong at 0.5 and right at 0.5, of 4. Dogs: none there, one
    found.
    """
    objects = [(1, 1, A), (1, 1, B), (1, 1, C), (2, 1, A)]
    found = [(1, 1, 0.9, A), (1, 1, 0.8, NOWHERE), (1, 1, 0.6, B), (1, 1, 0.5, NOWHERE), (2, 1, 0.5, A)]
    return pairs_of(objects, [*found, (1, 2, 0.9, NOWHERE)], num_images=2)


def test_precision_and_recall(pairs: Pairs) -> None:
    cats, dogs = ranked(pairs)
    at = at_threshold([cats], 0.6)
    assert (at.precision, at.recall, at.detections, at.objects) == (2 / 3, 2 / 4, 3, 4)
    assert at.f1 == pytest.approx(4 / 7)
    assert at_threshold([cats], 0.95).precision == 1
    assert at_threshold([dogs], 0.5).precision == 0
    both = at_threshold([cats, dogs], 0.6)
    assert (both.precision, both.recall) == (2 / 4, 2 / 4)


def test_the_recommended_threshold_has_the_best_f1(pairs: Pairs) -> None:
    cats, dogs = ranked(pairs)
    # F1 is 2 tp / (found + 4): 0.4 at 0.9, 2/6 at 0.8, 4/7 at 0.6 and, both of 0.5 together, 6/9 at 0.5.
    assert recommended(cats).threshold == 0.5
    assert recommended(cats).f1 == pytest.approx(6 / 9)
    assert recommended(dogs).threshold == NO_THRESHOLD


def test_counts(pairs: Pairs) -> None:
    matches = [p.match(HALF)[0] for p in pairs.pictures]
    counting = count_objects(pairs, np.array([0.55, 0.95]), matches)
    assert counting.there.tolist() == [3, 1]
    assert counting.found.tolist() == [3, 0]  # cats at 0.9, 0.8 and 0.6
    assert (counting.mean_error, counting.bias, counting.exact) == (0.5, -0.5, 0.5)


def test_crowds_count_for_nothing() -> None:
    pairs = pairs_of([(1, 1, A)], [(1, 1, 0.9, (1, 1, 5, 5))], crowds=[0])
    cats, _ = ranked(pairs)
    assert at_threshold([cats], 0.5).detections == 0
    counting = count_objects(pairs, np.array([0.5, 0.5]), [p.match(HALF)[0] for p in pairs.pictures])
    assert (counting.there.tolist(), counting.found.tolist()) == ([0], [0])
