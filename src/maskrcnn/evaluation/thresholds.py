"""Precision and recall over the score threshold, the threshold to use, and what it does to counts.

A threshold t keeps the detections that score t or more. Precision is the share of them that match an object at IoU
0.5, recall the share of the objects that they match, F1 their harmonic mean. Detections in crowd regions count as
neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.pairs import Pairs
from maskrcnn.evaluation.ranking import Ranking

GRID = np.linspace(0, 1, 101)
NO_THRESHOLD = 0.5  # of a class of which nothing right was found, or that has no objects: any is as good


@dataclass(slots=True)
class Operating:
    """Effect of a threshold: precision and recall; `detections` above it and `objects` to find."""

    threshold: float
    precision: float
    recall: float
    detections: int
    objects: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(slots=True, eq=False)
class Counting:
    """Number of objects found less the number there are, in each picture, at each class's recommended threshold.

    there, found: (P,) objects of all classes in each picture.
    """

    there: np.ndarray
    found: np.ndarray

    @property
    def mean_error(self) -> float:
        """Mean of the errors' sizes, in objects an image."""
        return float(np.abs(self.found - self.there).mean()) if len(self.there) else 0.0

    @property
    def bias(self) -> float:
        """Mean error, above 0 where too many are found."""
        return float((self.found - self.there).mean()) if len(self.there) else 0.0

    @property
    def exact(self) -> float:
        """Share of the pictures whose count is right."""
        return float((self.found == self.there).mean()) if len(self.there) else 1.0


def recommended(ranking: Ranking) -> Operating:
    """Find the threshold of the best F1 for a class, ranked at IoU 0.5; of equal ones the highest."""
    scores, tp, fp = _counted(ranking)
    last = np.append(scores[1:] != scores[:-1], True) if len(scores) else np.zeros(0, bool)
    scores, tp, fp = scores[last], tp[last], fp[last]
    f1 = 2 * tp / np.maximum(tp + fp + ranking.num_objects, 1)
    if not len(f1) or f1.max() == 0:
        return at_threshold([ranking], NO_THRESHOLD)
    return at_threshold([ranking], float(scores[f1.argmax()]))


def at_threshold(rankings: Sequence[Ranking], threshold: float) -> Operating:
    """Precision and recall of some classes together, ranked at IoU 0.5, at one threshold. Where nothing is found
    precision is 1, and where there is nothing to find recall is.
    """
    right = kept = 0
    objects = sum(r.num_objects for r in rankings)
    for ranking in rankings:
        chosen = (ranking.scores >= threshold) & ~ranking.ignored[0]
        right += int((ranking.right[0] & chosen).sum())
        kept += int(chosen.sum())
    precision = right / kept if kept else 1.0
    return Operating(threshold, precision, right / objects if objects else 1.0, kept, objects)


def count_objects(pairs: Pairs, thresholds: np.ndarray, matches: Sequence[np.ndarray]) -> Counting:
    """Count what is found from each class's threshold (K,) on and what is there, by picture.

    matches: of each picture, (D,) at IoU 0.5; what lies in a crowd region is not counted.
    """
    there = [int((~p.crowd).sum()) for p in pairs.pictures]
    found = [
        int(((p.scores >= thresholds[p.labels]) & (m >= -1)).sum())
        for p, m in zip(pairs.pictures, matches, strict=True)
    ]
    return Counting(np.array(there, int), np.array(found, int))


def _counted(ranking: Ranking) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of what counts, best first, and how many right and wrong ones there are up to each."""
    counts = ~ranking.ignored[0]
    right = ranking.right[0][counts]
    return ranking.scores[counts], np.cumsum(right), np.cumsum(~right)
