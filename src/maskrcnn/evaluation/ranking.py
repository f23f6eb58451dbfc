"""Average precision from detections ranked by score, for many weightings of them at once.

Shape letters: N detections of a class over all images, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.pairs import IGNORED, Pairs
from maskrcnn.evaluation.scores import RECALL_LEVELS


@dataclass(slots=True, eq=False)
class Ranking:
    """Detections of one class over all images, best first.

    picture: (N,) index among `Pairs.pictures`; place: (N,) index among the picture's detections; scores: (N,);
    right, ignored: (T, N), whether they match an object, or lie in a crowd region; num_objects: how many to find.
    """

    picture: np.ndarray
    place: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    num_objects: int

    def ap(self) -> np.ndarray:
        """COCO's average precision (T,), not-a-number where there is nothing to find."""
        return average_precision(self.right, ~self.right & ~self.ignored, self.num_objects)


def rank(pairs: Pairs, matches: list[np.ndarray]) -> list[Ranking]:
    """Rank the detections of each class; `matches`: what `Picture.match` gives, (T, D) a picture."""
    counts = pairs.num_objects
    pictures, T = pairs.pictures, matches[0].shape[0] if matches else 0
    picture = np.repeat(np.arange(len(pictures)), [len(p.scores) for p in pictures])
    place = np.concatenate([np.arange(len(p.scores)) for p in pictures] or [np.zeros(0, int)])
    scores = np.concatenate([p.scores for p in pictures] or [np.zeros(0)])
    labels = np.concatenate([p.labels for p in pictures] or [np.zeros(0, int)])
    matched = np.concatenate(matches, axis=1) if matches else np.zeros((T, 0), int)
    rankings = []
    for k in range(len(pairs.class_names)):
        mine = np.flatnonzero(labels == k)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        its = matched[:, mine]
        rankings.append(
            Ranking(picture[mine], place[mine], scores[mine], its >= 0, its == IGNORED, int(counts[k]))
        )
    return rankings


def average_precision(right: np.ndarray, wrong: np.ndarray, num_objects: int | np.ndarray) -> np.ndarray:
    """COCO's AP (...) from weights (..., N), best first, of what is right and wrong: mean over 101 recall levels of
    the best precision at that recall or more.

    num_objects: (...) to find; where 0, the AP is not a number.
    """
    return ap_of_counts(np.cumsum(right, -1), np.cumsum(wrong, -1), num_objects)


def ap_of_counts(tp: np.ndarray, fp: np.ndarray, num_objects: int | np.ndarray) -> np.ndarray:
    """COCO's AP (...) from the weight (..., N) of what is right, and wrong, up to each detection, best first. Those
    that are wrong may be left out after they are counted: the best precision to come is never theirs.
    """
    count = np.asarray(num_objects, float)[..., None]
    precision = tp / (tp + fp + np.spacing(1))
    best = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    recall = tp / np.maximum(count, 1)
    levels = np.searchsorted(RECALL_LEVELS, recall, side="right")  # reached with each detection
    ap = (best * np.diff(levels, axis=-1, prepend=0)).sum(-1) / len(RECALL_LEVELS)
    return np.where(count[..., 0] > 0, ap, np.nan)


def mean_ap(rankings: list[Ranking]) -> np.ndarray:
    """Mean AP (T,) over the classes that have objects, not-a-number if none has."""
    aps = [r.ap() for r in rankings if r.num_objects]
    return np.mean(aps, axis=0) if aps else np.full(1, np.nan)
