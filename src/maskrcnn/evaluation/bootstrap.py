"""Intervals of AP by the bootstrap over pictures (Efron 1979): what other pictures of the same kind might have given.

Pictures are drawn with replacement, as many as there are, and AP is computed of each draw. For two results on the same
data both are computed of the same draws (paired), so that what is hard for both cancels in the difference. How a
detection matches does not depend on other pictures: a draw is a weight for each picture, and nothing is matched again.

Shape letters: S draws, P pictures, T IoU thresholds, N detections of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.pairs import Pairs
from maskrcnn.evaluation.ranking import Ranking, ap_of_counts

DRAWS, SEED, COVERAGE = 1000, 0, 0.95
_AT_A_TIME = 1 << 21  # weights of detections, some 16 MB


@dataclass(slots=True)
class Interval:
    """Number with the interval that holds `COVERAGE` of the draws; `above`: share of the draws above 0."""

    value: float
    low: float
    high: float
    above: float


def draw_pictures(num_pictures: int, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Draw pictures with replacement: how often (S, P) each is in a draw."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), draws)


def mean_aps(pairs: Pairs, rankings: Sequence[Ranking], draws: np.ndarray) -> np.ndarray:
    """Mean AP (S, T) over the classes that have objects in a draw; not-a-number where none has."""
    there = np.zeros((len(pairs.pictures), len(rankings)), int)
    for row, p in zip(there, pairs.pictures, strict=True):
        np.add.at(row, p.gt_labels[~p.crowd], 1)
    counts = draws @ there
    T = rankings[0].right.shape[0] if rankings else 0
    total, classes = np.zeros((len(draws), T)), (counts > 0).sum(1)
    for k, ranking in enumerate(rankings):
        if ranking.num_objects:
            for t in range(T):
                total[:, t] += np.nan_to_num(_aps(ranking, t, draws, counts[:, k]))
    return np.where(classes[:, None] > 0, total / np.maximum(classes, 1)[:, None], np.nan)


def _aps(ranking: Ranking, t: int, draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AP (S,) of a class at one threshold, where `counts` (S,) objects are to find."""
    right = ranking.right[t]
    wrong = ~right & ~ranking.ignored[t]
    picture_of_right, picture_of_wrong = ranking.picture[right], ranking.picture[wrong]
    wrong_before = np.cumsum(wrong)[right]
    aps, step = [], max(1, _AT_A_TIME // max(1, len(right)))
    for first in range(0, len(draws), step):
        part = draws[first : first + step]
        tp = np.cumsum(part[:, picture_of_right], 1)
        fp = np.cumsum(np.pad(part[:, picture_of_wrong], ((0, 0), (1, 0))), 1)[:, wrong_before]
        aps.append(ap_of_counts(tp, fp, counts[first : first + step]))
    return np.concatenate(aps)


def interval(value: float, drawn: np.ndarray) -> Interval:
    """Interval around a value from its draws (S,); those that are no number are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, value, value, float(value > 0))
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(value, float(low), float(high), float((drawn > 0).mean()))
