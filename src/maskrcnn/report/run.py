"""HTML page about a run: scores, curves, pictures, settings. Curves are drawn as inline SVG."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.charts import Curve
from maskrcnn.report.page import Panel, bar, cards_of, chart, gallery, section, write_page
from maskrcnn.report.scores_table import KIND_TITLES, score, scores_table
from maskrcnn.training.runlog import read_log

_LOSS_TITLES = {
    "loss_rpn_cls": "proposal score",
    "loss_rpn_loc": "proposal box",
    "loss_cls": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}
# What the summary shows, from the config in the log: (title, path, unit).
_SETTINGS = (
    ("Model", "model.name", ""),
    ("Classes", "model.num_classes", ""),
    ("Optimiser", "optim.optimizer", ""),
    ("Learning rate", "optim.lr", ""),
    ("Schedule", "optim.schedule", ""),
    ("Images per step", "data.batch_size", ""),
    ("Precision", "train.precision", ""),
    ("Seed", "train.seed", ""),
)


@dataclass(slots=True)
class Scores:
    """Results of an evaluation.

    numbers:   {"bbox" | "segm": {name: value}}, COCO's numbers in COCO's order
    per_class: {class name: {"bbox" | "segm": AP}}
    precision: per class, precision (y) over recall (x) of masks at IoU 0.5
    """

    numbers: Mapping[str, Mapping[str, float]]
    per_class: Mapping[str, Mapping[str, float]]
    precision: Sequence[Curve] = ()


def write_report(
    path: str | Path,
    log_path: str | Path,
    scores: Scores,
    panels: Sequence[Panel] = (),
    *,
    title: str = "Mask R-CNN",
    lead: str = "",
    times: Mapping[str, float] | None = None,
) -> Path:
    """Write the page about a run, whole or not at all.

    Args:
        path: the HTML file.
        log_path: the run's `log.jsonl`.
        panels: pictures to show, ground truth beside prediction.
        lead: a sentence under the title.
        times: seconds by part of the work, in order.

    Raises:
        UserError: the file cannot be written.
    """
    log = read_log(Path(log_path))
    sections = [
        section("Scores", scores_table(scores.numbers), "On images that were not trained on."),
        section("Pictures", gallery(panels), "Left: ground truth. Right: prediction."),
        section("Curves", _curves(log, scores.precision)),
        section("Classes", _class_table(scores)),
        section("Time", _time_bars(times or {})),
        section("Settings", _settings(log)),
    ]
    return write_page(path, title, lead, _cards(scores.numbers, log), sections)


# ------------------------------------------------------------------------------------------- sections


def _cards(numbers: Mapping[str, Mapping[str, float]], log: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for kind in ("segm", "bbox"):
        if "AP" in numbers.get(kind, {}):
            cards.append((score(numbers[kind]["AP"]), f"{KIND_TITLES[kind]} AP"))
    train = [entry for entry in log if entry["kind"] == "train"]
    if train:
        speeds = [v for entry in train if (v := entry.get("images_per_second"))]
        # A run that ends between two entries of training still says when and where.
        cards.append((duration(max(e["seconds"] for e in log if "seconds" in e)), "of training"))
        cards.append((f"{max(entry['iteration'] for entry in log if 'iteration' in entry):,}", "steps"))
        if speeds:
            cards.append((f"{float(np.median(speeds)):.0f}", "images a second"))
    parameters = next((e["parameters"] for e in log if e["kind"] == "config" and "parameters" in e), None)
    if parameters:
        cards.append((f"{parameters / 1e6:.2f} M", "parameters"))
    return cards_of(cards)


def _class_table(scores: Scores) -> str:
    kinds = [k for k in KIND_TITLES if any(k in row for row in scores.per_class.values())]
    head = "<tr><th>Class</th>" + "".join(f"<th>{KIND_TITLES[k]} AP</th>" for k in kinds) + "</tr>"
    rows = []
    for name, row in scores.per_class.items():
        cells = "".join(f"<td>{bar(row.get(k))}{score(row.get(k))}</td>" for k in kinds)
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""


def _curves(log: Sequence[Mapping[str, Any]], precision: Sequence[Curve]) -> str:
    train = [e for e in log if e["kind"] == "train"]
    evals = [e for e in log if e["kind"] == "eval"]
    charts = []
    if len(train) > 1:
        steps = [e["iteration"] for e in train]
        terms: list[str] = list(train[-1].get("losses", {}))
        losses = [Curve("sum", steps, [_number(e.get("loss")) for e in train])]
        losses += [
            Curve(_LOSS_TITLES.get(t) or t, steps, [_number(e["losses"].get(t)) for e in train])
            for t in terms
        ]
        charts.append(chart("Training loss", losses, "steps"))
    for key, unit, scale in (("iteration", "steps", 1.0), ("seconds", "minutes of training", 1 / 60)):
        ap = [
            Curve(
                f"{KIND_TITLES[kind].lower()} AP",
                [0.0] + [_number(e.get(key)) * scale for e in evals],
                [0.0] + [_number(e.get(kind, {}).get("AP")) for e in evals],
            )
            for kind in ("segm", "bbox")
            if any(kind in e for e in evals)
        ]
        if ap:
            charts.append(chart(f"AP over {unit}", ap, unit, y_max=1.0, marks=True))
    if precision:
        charts.append(chart("Mask precision over recall, IoU 0.5", precision, "recall", y_max=1.0, x_max=1.0))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _time_bars(times: Mapping[str, float]) -> str:
    total = sum(times.values())
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{bar(seconds / total)}{duration(seconds)}</td></tr>"
        for name, seconds in times.items()
    )
    whole = f"<tr><th>Together</th><td>{duration(total)}</td></tr>"
    return f'<div class="scroll"><table>{rows}{whole}</table></div>' if total > 0 else ""


def _settings(log: Sequence[Mapping[str, Any]]) -> str:
    entry = next((e for e in log if e["kind"] == "config"), None)
    if entry is None:
        return ""
    config = entry["config"]
    rows = []
    for title, path, unit in _SETTINGS:
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, ""):
            rows.append(f"<tr><th>{title}</th><td class='words'>{html.escape(f'{value}{unit}')}</td></tr>")
    whole = html.escape(json.dumps(config, indent=1))
    return (
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
        f"<details><summary>All settings</summary><pre>{whole}</pre></details>"
    )


# ---------------------------------------------------------------------------------------------- parts


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def duration(seconds: Any) -> str:
    number = _number(seconds)
    if not math.isfinite(number):
        return "–"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else (f"{rest} s" if number >= 1 else f"{number:.1f} s")
