"""Precision over recall as a picture: one small SVG, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np

from maskrcnn.evaluation.scores import RECALL_LEVELS, EvaluationResult, KindResult

PANEL, LEFT, TOP, BELOW, LEGEND = 260, 46, 30, 40, 16
COLOURS = ("#4269d0", "#e8590c", "#2b8a3e", "#c92a2a", "#9c36b5", "#0b7285", "#a0671b", "#868e96")
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
    step, height = PANEL + LEFT + 24, TOP + PANEL + BELOW + LEGEND * MAX_CLASSES
    placed = "".join(
        f'<g transform="translate({i * step + LEFT},{TOP})">{p}</g>' for i, p in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {step * len(panels)} {height}" '
        f'width="{step * len(panels)}" height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{placed}</svg>\n'
    )


def _by_threshold(scores: KindResult) -> Iterable[tuple[str, np.ndarray]]:
    return [(f"IoU {iou:.2f}", scores.curve(iou)) for iou in THRESHOLDS]


def _by_class(scores: KindResult) -> Iterable[tuple[str, np.ndarray]]:
    """The classes with the most objects."""
    names = sorted(scores.per_class, key=lambda name: -scores.per_class[name]["objects"])[:MAX_CLASSES]
    return [(f"{n} ({scores.per_class[n]['objects']:g})", scores.class_curve(n)) for n in names]


def _panel(title: str, curves: Iterable[tuple[str, np.ndarray]]) -> str:
    parts = [f'<text x="0" y="-10" font-size="13">{escape(title)}</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = PANEL * tick
        parts.append(
            f'<path d="M0 {PANEL - at:g}H{PANEL}M{at:g} 0V{PANEL}" stroke="#ddd"/>'
            f'<text x="-6" y="{PANEL - at + 4:g}" text-anchor="end">{tick:g}</text>'
            f'<text x="{at:g}" y="{PANEL + 15}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(f'<text x="{PANEL / 2}" y="{PANEL + 30}" text-anchor="middle">recall</text>')
    parts.append(
        f'<text transform="translate(-32 {PANEL / 2}) rotate(-90)" text-anchor="middle">precision</text>'
    )
    for i, (name, precision) in enumerate(curves):
        colour, y = COLOURS[i % len(COLOURS)], PANEL + BELOW + LEGEND * i + 4
        if precision[0] >= 0:
            points = " ".join(
                f"{PANEL * r:.1f},{PANEL * (1 - p):.1f}" for r, p in zip(RECALL_LEVELS, precision)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        ap = f"{precision.mean():.3f}" if precision[0] >= 0 else "no objects"
        parts.append(f'<path d="M0 {y}H14" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="20" y="{y + 4}">{escape(name)}: {ap}</text>')
    return "".join(parts)
