"""Precision over recall as a picture: one SVG."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maskrcnn.charts import Curve, Drawing, as_file, line_chart, side_by_side, titled
from maskrcnn.evaluation.scores import RECALL_LEVELS, EvaluationResult, KindResult

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
MAX_CLASSES = 8
TITLES = {"bbox": "boxes", "segm": "masks", "keypoints": "key points"}


def pr_curves_svg(result: EvaluationResult) -> str:
    """A panel for each kind by IoU threshold (mean of the classes), and one by class at IoU 0.5."""
    panels = []
    for kind, scores in result.kinds.items():
        panels.append(_panel(f"{TITLES[kind]}, mean of classes", _by_threshold(scores)))
        if len(scores.per_class) > 1:
            panels.append(_panel(f"{TITLES[kind]}, IoU 0.5, by class", _by_class(scores)))
    return as_file(side_by_side(panels))


def _by_threshold(scores: KindResult) -> Iterable[tuple[str, np.ndarray]]:
    return [(f"IoU {iou:.2f}", scores.curve(iou)) for iou in THRESHOLDS]


def _by_class(scores: KindResult) -> Iterable[tuple[str, np.ndarray]]:
    """The classes with the most objects."""
    names = sorted(scores.per_class, key=lambda name: -scores.per_class[name]["objects"])[:MAX_CLASSES]
    return [(f"{n} ({scores.per_class[n]['objects']:g})", scores.class_curve(n)) for n in names]


def _panel(title: str, curves: Iterable[tuple[str, np.ndarray]]) -> Drawing:
    lines, legend = [], []
    for name, precision in curves:
        known = precision[0] >= 0
        lines.append(
            Curve(name, RECALL_LEVELS.tolist() if known else [], precision.tolist() if known else [])
        )
        legend.append(f"{name}: {precision.mean():.3f}" if known else f"{name}: no objects")
    chart = line_chart(lines, "recall", y_title="precision", x_max=1.0, y_max=1.0, width=330, height=310)
    return titled(chart, title, legend)
