"""Calibration: whether, of detections with a score of 0.7, seven in ten are right, and the temperature that mends it.

Right is a detection that matches an object of its class at IoU 0.5. The expected calibration error (Naeini et al. 2015)
is the mean gap between score and share of right ones over bins of the score, weighted by their sizes. A temperature
(Guo et al. 2017, arXiv 1706.04599) divides the log-odds of all scores; it changes no order, so no AP. Both see what the
results hold: detections below the model's score threshold are not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.evaluation.ranking import Ranking
from maskrcnn.ops.temperature import tempered

NUM_BINS = 10
LEAST, MOST = 0.05, 20.0  # temperatures; beyond, the detections say nothing
MIN_DETECTIONS = 20  # to calibrate from
_EDGE = 1e-6  # scores of 0 and 1 are not sure enough to have infinite odds


@dataclass(slots=True, eq=False)
class Scored:
    """Detections of all classes: scores (N,), right (N,), picture (N,) each is of."""

    scores: np.ndarray
    right: np.ndarray
    picture: np.ndarray


@dataclass(slots=True, eq=False)
class Calibration:
    """Reliability curve and its error, and what a temperature would make of them.

    score, share, count: (NUM_BINS,) mean score, share of right ones and number of the detections of each bin;
    not-a-number in empty ones. error: expected calibration error, -1 of no detections.
    temperature: the best one, 1 where there are too few detections; error_after: the error with it, of each half of
    the pictures with the other half's temperature.
    """

    score: np.ndarray
    share: np.ndarray
    count: np.ndarray
    error: float
    temperature: float
    error_after: float


def gather(rankings: Sequence[Ranking]) -> Scored:
    """Detections of all classes, ranked at IoU 0.5; what lies in crowd regions is neither right nor wrong."""
    kept = [~r.ignored[0] for r in rankings]
    columns = (
        [r.scores[k] for r, k in zip(rankings, kept, strict=True)],
        [r.right[0][k] for r, k in zip(rankings, kept, strict=True)],
        [r.picture[k] for r, k in zip(rankings, kept, strict=True)],
    )
    scores, right, picture = (np.concatenate(c) if c else np.zeros(0) for c in columns)
    return Scored(scores, right.astype(bool), picture.astype(int))


def calibrate(found: Scored) -> Calibration:
    """Measure the calibration of detections, and find the temperature that would mend it. Scores beyond 0 to 1, which
    results made elsewhere may have, are no shares of anything and have none.
    """
    if ((found.scores < 0) | (found.scores > 1)).any():
        found = Scored(np.zeros(0), np.zeros(0, bool), np.zeros(0, int))
    score, share, count = reliability(found.scores, found.right)
    half = found.picture % 2 == 0
    after = found.scores.copy()
    for part in (half, ~half):
        after[part] = tempered(found.scores[part], temperature(found.scores[~part], found.right[~part]))
    return Calibration(
        score,
        share,
        count,
        expected_error(found.scores, found.right),
        temperature(found.scores, found.right),
        expected_error(after, found.right),
    )


def reliability(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, share of right ones and number of the detections in each of NUM_BINS bins of the score."""
    which = np.clip((scores * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    count = np.bincount(which, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        score, share = (np.bincount(which, v, NUM_BINS) / count for v in (scores, right.astype(float)))
    return score, share, count


def expected_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error, from 0 to 1; -1 of no detections."""
    if not len(scores):
        return -1.0
    score, share, count = reliability(scores, right)
    return float(np.nansum(count * np.abs(score - share)) / count.sum())


def temperature(scores: np.ndarray, right: np.ndarray) -> float:
    """Find the temperature under which the detections are likeliest, by golden-section search; 1 of too few
    detections, or where all are right or all wrong.
    """
    if len(scores) < MIN_DETECTIONS or right.all() or not right.any():
        return 1.0
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    odds = np.log(clipped) - np.log1p(-clipped)
    sign = np.where(right, -1.0, 1.0)

    def surprise(log_temperature: float) -> float:
        return float(np.logaddexp(0, sign * odds / np.exp(log_temperature)).mean())

    low, high, ratio = np.log(LEAST), np.log(MOST), (np.sqrt(5) - 1) / 2
    for _ in range(60):  # of one valley: the surprise is convex in 1 / temperature
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if surprise(a) < surprise(b) else (a, high)
    return float(np.exp((low + high) / 2))
