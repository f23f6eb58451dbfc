"""Analysis of a model's results on a data set: what `maskrcnn evaluate --report` shows, as numbers.

The analysis is of masks where there are some, else of boxes. Its parts are files of their own: `boundary`, `causes`,
`confusion`, `thresholds`, `calibration`, `bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.evaluation.bootstrap import COVERAGE, DRAWS, Interval, draw_pictures, interval, mean_aps
from maskrcnn.evaluation.boundary import boundary_matches
from maskrcnn.evaluation.calibration import Calibration, calibrate, gather
from maskrcnn.evaluation.causes import Causes, find_causes, worst_pictures
from maskrcnn.evaluation.confusion import Confusion, confusion_matrix
from maskrcnn.evaluation.pairs import IOUS, Pairs, pair
from maskrcnn.evaluation.ranking import Ranking, mean_ap, rank
from maskrcnn.evaluation.scores import EvaluationResult
from maskrcnn.evaluation.thresholds import (
    GRID,
    Counting,
    Operating,
    at_threshold,
    count_objects,
    recommended,
)
from maskrcnn.evaluation.truth import Truth

AP50, AP75 = 0, 5  # among IOUS
LISTED = 20  # pictures of each cause among the numbers


@dataclass(slots=True, eq=False)
class Analysis:
    """Parts of the analysis, by class in the order of `pairs.class_names` (K).

    image_ids: by picture;
    boundary: boundary AP (K, T) at IOUS, None for boxes, not-a-number for a class without objects;
    operating: the recommended threshold of each class; together: of all classes at one threshold, over GRID;
    intervals: of "AP", "AP50" and "boundary AP"; against: of their differences to other results, if any.
    """

    pairs: Pairs
    image_ids: list[Any]
    scores: EvaluationResult
    boundary: np.ndarray | None
    causes: Causes
    confusion: Confusion
    operating: list[Operating]
    together: list[Operating]
    counting: Counting
    calibration: Calibration
    intervals: dict[str, Interval]
    against: dict[str, Interval] | None

    @property
    def best_together(self) -> Operating:
        """The threshold of the best F1 for all classes together."""
        return max(self.together, key=lambda o: o.f1)

    def worst(self, limit: int) -> dict[str, list[tuple[int, np.ndarray]]]:
        """Pictures with the most errors of each cause (see `causes.worst_pictures`)."""
        thresholds = np.array([o.threshold for o in self.operating])
        return worst_pictures(self.pairs, self.causes, thresholds, limit)

    @property
    def numbers(self) -> dict[str, Any]:
        """The analysis as JSON's types, null for what is not a number."""
        names = list(self.scores.kinds[self.pairs.kind].per_class)
        kinds = self.scores.kinds
        report = {
            "kind": self.pairs.kind,
            "images": len(self.pairs.pictures),
            "objects": int(self.pairs.num_objects.sum()),
            "scores": self.scores.numbers,
            "intervals": {"coverage": COVERAGE, "draws": DRAWS, **_intervals(self.intervals)},
            "per_class": self.scores.per_class,
            "by_size": {kind: result.by_size for kind, result in kinds.items()},
            "boundary": None if self.boundary is None else _boundary_numbers(self.boundary, names),
            "causes": {
                "AP50": self.causes.ap50,
                "counts": self.causes.counts,
                "costs": self.causes.costs | self.causes.extra,
                "worst": {
                    cause: [{"image_id": self.image_ids[k], "errors": len(its)} for k, its in found]
                    for cause, found in self.worst(LISTED).items()
                },
            },
            "confusion": {"classes": [*names, "background"], "counts": self.confusion.counts.tolist()},
            "thresholds": {
                "per_class": {n: _operating(o) for n, o in zip(names, self.operating, strict=True)},
                "all_classes": _operating(self.best_together),
                "curve": [_operating(o) for o in self.together],
            },
            "counting": {
                "mean_error": self.counting.mean_error,
                "bias": self.counting.bias,
                "exact": self.counting.exact,
                "there": self.counting.there.tolist(),
                "found": self.counting.found.tolist(),
            },
            "calibration": {
                "error": self.calibration.error,
                "temperature": self.calibration.temperature,
                "error_after": self.calibration.error_after,
                "score": self.calibration.score.tolist(),
                "share": self.calibration.share.tolist(),
                "count": self.calibration.count.tolist(),
            },
            "against": None if self.against is None else _intervals(self.against),
        }
        return _plain(report)


def analyse(
    truth: Truth,
    results: Sequence[Mapping[str, Any]],
    scores: EvaluationResult,
    max_detections: int = 100,
    against: Sequence[Mapping[str, Any]] | None = None,
    against_name: str = "other results",
) -> Analysis:
    """Analyse COCO results that `evaluate_results` has scored; `against`: other results, to compare with, and the name
    for messages about them.

    Raises:
        UserError: scores of key points alone; other results that cannot be scored.
    """
    kind = analysed_kind(list(scores.kinds))
    pairs = pair(truth, results, kind, max_detections)
    ranked = _Ranked(pairs)
    operating = [recommended(r) for r in ranked.rankings]
    thresholds = np.array([o.threshold for o in operating])
    draws = draw_pictures(len(pairs.pictures))
    values, drawn, differences = ranked.values(), ranked.drawn(draws), None
    if against is not None:
        other = _Ranked(pair(truth, against, kind, max_detections, against_name))
        theirs, of_theirs = other.values(), other.drawn(draws)
        differences = {n: interval(values[n] - theirs[n], drawn[n] - of_theirs[n]) for n in values}
    return Analysis(
        pairs,
        list(truth.image_number),
        scores,
        None if ranked.edges is None else np.array([r.ap() for r in ranked.edges]),
        find_causes(pairs),
        confusion_matrix(pairs, thresholds),
        operating,
        [at_threshold(ranked.rankings, float(t)) for t in GRID],
        count_objects(pairs, thresholds, [m[AP50] for m in ranked.matches]),
        calibrate(gather(ranked.rankings)),
        {n: interval(values[n], drawn[n]) for n in values},
        differences,
    )


class _Ranked:
    """Pairs with their matches at IOUS, and the rankings by the masks' overlap and, of masks, by the boundaries'."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.matches = [p.match(IOUS) for p in pairs.pictures]
        self.rankings = rank(pairs, self.matches)
        self.edges = rank(pairs, boundary_matches(pairs)) if pairs.kind == "segm" else None

    def values(self) -> dict[str, float]:
        """The numbers that have intervals."""
        return {name: float(ap[0]) for name, ap in self._named(mean_ap).items()}

    def drawn(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Draws (S,) of these numbers, from how often (S, P) each picture is drawn."""
        return self._named(lambda rankings: mean_aps(self.pairs, rankings, draws))

    def _named(self, compute: Callable[[list[Ranking]], np.ndarray]) -> dict[str, np.ndarray]:
        """Name AP and the like, (S,) each, from mean APs (S, T) or (T,) computed of rankings."""
        aps = np.atleast_2d(compute(self.rankings))
        named = {"AP": aps.mean(1), "AP50": aps[:, AP50]}
        if self.edges is not None:
            named["boundary AP"] = np.atleast_2d(compute(self.edges)).mean(1)
        return named


def analysed_kind(kinds: Sequence[str]) -> str:
    """The kind that an analysis is of: masks if they are scored, else boxes.

    Raises:
        UserError: neither is scored.
    """
    for kind in ("segm", "bbox"):
        if kind in kinds:
            return kind
    raise UserError(
        "evaluate: --report and --calibrate are of masks or boxes: expected one of these, got key points alone."
    )


def _boundary_numbers(boundary: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    there = boundary[~np.isnan(boundary[:, 0])]
    mean = there.mean(0) if len(there) else np.full(len(IOUS), np.nan)
    return {
        "AP": float(mean.mean()),
        "AP50": float(mean[AP50]),
        "AP75": float(mean[AP75]),
        "per_class": {n: float(ap.mean()) for n, ap in zip(names, boundary, strict=True)},
    }


def _operating(o: Operating) -> dict[str, float]:
    return asdict(o) | {"f1": o.f1}


def _intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(i) for name, i in intervals.items()}


def _plain(value: Any) -> Any:
    """Replace what is not a number, which JSON cannot say, by None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
