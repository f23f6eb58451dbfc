"""Confusion matrix of classes, background among them, on what a user would see: detections above a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.pairs import Pairs, Picture

IOU = 0.5


@dataclass(slots=True, eq=False)
class Confusion:
    """Counts (K + 1, K + 1) by true class (row) and found class (column), the last of each being background:
    detections that are no object stand in its row, objects that nothing found in its column.
    """

    counts: np.ndarray

    def worst(self, limit: int) -> list[tuple[int, int, int]]:
        """Most frequent confusions of two classes: at most `limit` (true class, found class, count)."""
        off = self.counts[:-1, :-1].copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, off.shape), strict=True)
        return [(int(a), int(b), int(off[a, b])) for a, b in pairs if off[a, b]]


def confusion_matrix(pairs: Pairs, thresholds: np.ndarray) -> Confusion:
    """Count which class was found for which, at IoU 0.5, of detections from their class's threshold (K,) on.

    Each object goes with one detection, of whatever class; the pairs that overlap most are joined first. Other
    detections that lie in a crowd region of their class do not count.
    """
    K = len(pairs.class_names)
    counts = np.zeros((K + 1, K + 1), int)
    for p in pairs.pictures:
        shown = p.scores >= thresholds[p.labels]
        partner = _joined(p, shown)
        for d in np.flatnonzero(shown):
            if partner[d] >= 0:
                counts[p.gt_labels[partner[d]], p.labels[d]] += 1
            elif not (p.iou[d] >= IOU)[p.crowd & (p.gt_labels == p.labels[d])].any():
                counts[K, p.labels[d]] += 1
        lost = ~p.crowd & ~np.isin(np.arange(len(p.crowd)), partner)
        np.add.at(counts[:, K], p.gt_labels[lost], 1)
    return Confusion(counts)


def _joined(p: Picture, shown: np.ndarray) -> np.ndarray:
    """The object (D,) that each shown detection is joined with, -1 for none."""
    partner = np.full(len(p.scores), -1)
    iou = np.where(shown[:, None] & ~p.crowd, p.iou, 0.0)
    detection, at = np.nonzero(iou >= IOU)
    taken = np.zeros(len(p.crowd), bool)
    for i in np.argsort(-iou[detection, at], kind="stable"):
        d, g = detection[i], at[i]
        if partner[d] < 0 and not taken[g]:
            partner[d], taken[g] = g, True
    return partner
