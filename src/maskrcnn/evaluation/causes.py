"""Errors by cause and what each costs: Bolya et al. 2020, "TIDE" (arXiv 2008.08115).

A detection that matches no object at IoU 0.5 is put down to one cause, an object that nothing finds is missed; and the
cost of a cause is how much AP50 would rise if its errors alone were mended: objects given their class or their place,
each by its best detection, false detections gone, missed objects not asked for. Costs do not sum to what AP lacks.

| cause | a detection that matches nothing and ... |
|---|---|
| place | overlaps an object of its class by 0.1 to 0.5 |
| class | overlaps an object of another class by 0.5 or more |
| doubled | overlaps an object of its class by 0.5 or more that a better one has found |
| background | overlaps no object by more than 0.1 |
| both | anything else: wrong class and wrong place |
| missed | an object that no detection finds, nor would with another class or place |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.pairs import WRONG, Pairs, Picture
from maskrcnn.evaluation.ranking import average_precision

CAUSES = ("class", "place", "both", "doubled", "background", "missed")
CLASS, PLACE, BOTH, DOUBLED, BACKGROUND, MISSED = range(len(CAUSES))
NONE = -1
IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(slots=True, eq=False)
class Errors:
    """Errors in one picture.

    cause: (D,) index into CAUSES, NONE for what is right or ignored; target: (D,) the object that it should have been,
    or -1; mended: (D,) the class and place errors that become right when mended, one an object; missed: (G,).
    """

    cause: np.ndarray
    target: np.ndarray
    mended: np.ndarray
    missed: np.ndarray


@dataclass(slots=True, eq=False)
class Causes:
    """Errors of all pictures, and by cause how many there are and what AP50 they cost, from 0 to 1.

    extra: cost of all false detections, and of all objects not found.
    """

    pictures: list[Errors]
    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]
    extra: dict[str, float]


def find_causes(pairs: Pairs) -> Causes:
    """Put every error down to its cause."""
    matches = [p.match(np.array([IOU]))[0] for p in pairs.pictures]
    errors = [_errors(p, m) for p, m in zip(pairs.pictures, matches, strict=True)]
    table = _Table(pairs, matches, errors)
    ap = table.ap()
    counts = {
        name: sum(int((e.missed if i == MISSED else e.cause == i).sum()) for e in errors)
        for i, name in enumerate(CAUSES)
    }
    costs = {name: max(table.without(i) - ap, 0.0) for i, name in enumerate(CAUSES)}  # below 0: recall levels
    extra = {
        "false detections": table.ap(kept=table.right) - ap,
        "not found": table.ap(num_objects=table.num_right) - ap,
    }
    return Causes(errors, ap, counts, costs, extra)


def worst_pictures(
    pairs: Pairs, causes: Causes, thresholds: np.ndarray, limit: int
) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Pictures with the most errors of each cause, at most `limit`: the index among the pairs' pictures and the errors,
    which are detections from their class's threshold (K,) on, best first, or objects if missed.
    """
    worst: dict[str, list[tuple[int, np.ndarray]]] = {}
    for i, name in enumerate(CAUSES):
        found = []
        for k, (p, e) in enumerate(zip(pairs.pictures, causes.pictures, strict=True)):
            shown = (e.cause == i) & (p.scores >= thresholds[p.labels])
            its = np.flatnonzero(e.missed if i == MISSED else shown)
            weight = len(its) if i == MISSED else p.scores[its].sum()
            found.append((weight, k, its))
        found.sort(key=lambda entry: -entry[0])
        worst[name] = [(k, its) for _, k, its in found[:limit] if len(its)]
    return worst


def _errors(p: Picture, matched: np.ndarray) -> Errors:
    real = np.flatnonzero(~p.crowd)
    used = np.isin(real, matched)
    cause, target = np.full(len(p.scores), NONE), np.full(len(p.scores), -1)
    iou, same = p.iou[:, real], p.same_class[:, real]
    for d in np.flatnonzero(matched == WRONG).tolist():
        cause[d], at = _cause(iou[d], same[d], used)
        target[d] = real[at] if at >= 0 else -1
    mended = np.zeros(len(p.scores), bool)
    claimed = np.zeros(len(p.crowd), bool)
    found = np.zeros(len(p.crowd), bool)
    found[real[used]] = True
    for d in np.flatnonzero((cause == CLASS) | (cause == PLACE)).tolist():  # best first
        mended[d] = not found[target[d]] and not claimed[target[d]]
        claimed[target[d]] = True
    return Errors(cause, target, mended, ~p.crowd & ~found & ~claimed)


def _cause(iou: np.ndarray, same: np.ndarray, used: np.ndarray) -> tuple[int, int]:
    """Cause of a false detection and the object concerned, from its IoU (G,) with the real objects."""
    if not len(iou):
        return BACKGROUND, -1
    own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    if BACKGROUND_IOU <= own.max() <= IOU:
        return PLACE, int(own.argmax())
    if other.max() >= IOU:
        return CLASS, int(other.argmax())
    taken = np.where(used, own, 0.0)
    if taken.max() >= IOU:
        return DOUBLED, int(taken.argmax())
    if iou.max() <= BACKGROUND_IOU:
        return BACKGROUND, -1
    return BOTH, int(iou.argmax())


class _Table:
    """All detections but the ignored, flat, to compute AP50 with some of them changed."""

    def __init__(self, pairs: Pairs, matches: list[np.ndarray], errors: list[Errors]) -> None:
        def flat(parts: list[np.ndarray]) -> np.ndarray:
            kept = [part[m >= WRONG] for part, m in zip(parts, matches, strict=True)]
            return np.concatenate(kept) if kept else np.zeros(0, int)

        pictures = pairs.pictures
        self.scores, self.labels = flat([p.scores for p in pictures]), flat([p.labels for p in pictures])
        self.right = flat(matches) >= 0
        self.cause, self.mended = (
            flat([e.cause for e in errors]),
            flat([e.mended for e in errors]).astype(bool),
        )
        self.true_labels = flat(
            [np.append(p.gt_labels, NONE)[e.target] for p, e in zip(pictures, errors, strict=True)]
        )
        self.num_objects = pairs.num_objects
        K = len(self.num_objects)
        self.num_right = np.bincount(self.labels[self.right].astype(int), minlength=K)
        self.num_missed = np.zeros(K, int)
        for p, e in zip(pictures, errors, strict=True):
            np.add.at(self.num_missed, p.gt_labels[e.missed], 1)

    def without(self, cause: int) -> float:
        """AP50 with the errors of one cause mended."""
        if cause == MISSED:
            return self.ap(num_objects=self.num_objects - self.num_missed)
        its = self.cause == cause
        right = self.right | (its & self.mended)
        labels = np.where(its & self.mended, self.true_labels, self.labels)
        return self.ap(right, labels, ~its | self.mended)

    def ap(
        self,
        right: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        kept: np.ndarray | None = None,
        num_objects: np.ndarray | None = None,
    ) -> float:
        """Mean AP50 of the classes that have objects. A class of which nothing is asked for any more and nothing found
        leaves the mean, as in TIDE's own code; if none is left, nothing is lost.
        """
        right = self.right if right is None else right
        labels = self.labels if labels is None else labels
        kept = np.ones(len(right), bool) if kept is None else kept
        num_objects = self.num_objects if num_objects is None else num_objects
        aps = []
        for k in np.flatnonzero(self.num_objects):
            mine = np.flatnonzero(kept & (labels == k))
            mine = mine[np.argsort(-self.scores[mine], kind="stable")]
            if num_objects[k]:
                aps.append(average_precision(right[mine], ~right[mine], num_objects[k]))
            elif len(mine):
                aps.append(0.0)
        if not self.num_objects.any():
            return float("nan")
        return float(np.mean(aps)) if aps else 1.0
