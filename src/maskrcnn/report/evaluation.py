"""HTML page about a model's results on a data set, for a person who wants to know what to mend.

Each section says what its numbers mean. The same numbers are in report.json beside the page.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maskrcnn.charts import Curve
from maskrcnn.evaluation.analysis import Analysis
from maskrcnn.evaluation.bootstrap import COVERAGE, DRAWS, Interval
from maskrcnn.evaluation.calibration import MIN_DETECTIONS
from maskrcnn.evaluation.causes import CAUSES
from maskrcnn.evaluation.thresholds import GRID, Operating
from maskrcnn.files import atomic_folder, write_atomic
from maskrcnn.images.bands import BandsFile
from maskrcnn.report.mistakes import draw_causes
from maskrcnn.report.page import bar, bar_table, cards_of, chart, figures, section, write_page
from maskrcnn.report.scores_table import KIND_TITLES, score, scores_table

NUMBERS = "report.json"
PAGE = "index.html"
PICTURES = 4  # drawn of each cause
_MOST_BESIDE = 8  # rows of a table beside a chart
_MOST_CLASSES = 15  # of a confusion matrix that a page has room for
_KIND_WORDS = {"segm": "masks", "bbox": "boxes"}
MEANING = {
    "class": "the place is right (IoU 0.5 or more), the class is wrong",
    "place": "the class is right, the place is not: IoU 0.1 to 0.5",
    "both": "neither the class nor the place is right",
    "doubled": "an object that a better detection has found already",
    "background": "nothing is there: IoU below 0.1",
    "missed": "an object that nothing finds",
    "false detections": "all of the first five together, gone",
    "not found": "all objects without a right detection, not asked for",
}


def write_evaluation(
    folder: str | Path,
    analysis: Analysis,
    *,
    title: str,
    lead: str = "",
    paths: Mapping[int, Path | BandsFile] | None = None,
    against: str = "",
) -> Path:
    """Write the page of an analysis and its numbers into a folder, whole or not at all; the page's path comes back.

    Args:
        folder: replaced if it holds an earlier report.
        lead: a sentence under the title.
        paths: of the images, by number (see `Truth`), as far as known; without, no errors are drawn.
        against: name of the results that these are compared with.

    Raises:
        UserError: the folder holds other things or cannot be written.
    """
    pictures = draw_causes(analysis, paths or {}, PICTURES)
    a = analysis
    by_class = (
        f"Scores of {_KIND_WORDS[a.pairs.kind]} by class. {_CLASSES}{_BOUNDARY * (a.boundary is not None)}"
    )
    sections = [
        section("Against other results", _against(a), f"These results less those of {against}."),
        section("Scores", scores_table(a.scores.numbers) + _intervals(a), "COCO's numbers, from 0 to 1."),
        section("Classes", _classes(a), by_class),
        section("What errors cost", _causes(a), _CAUSES),
        *(
            section(
                f"Errors: {cause}", figures(drawn, wide=True), f"{_sentence(MEANING[cause])} {_DRAWN[cause]}"
            )
            for cause, drawn in pictures.items()
        ),
        section("Confusion", _confusion(a), _CONFUSION),
        section("Thresholds", _thresholds(a), _THRESHOLDS),
        section("Counting", _counting(a), _COUNTING),
        section("Calibration", _calibration(a), _CALIBRATION),
    ]
    with atomic_folder(folder, NUMBERS) as temporary:
        write_page(temporary / PAGE, title, lead, _cards(a), sections)
        write_atomic(temporary / NUMBERS, json.dumps(a.numbers, indent=1, ensure_ascii=False) + "\n")
    return Path(folder) / PAGE


_COUNTING = "Objects found less objects there, of each picture, at each class's threshold."
_CLASSES = (
    "Small objects are below 32² pixels, large ones above 96²; behind an AP stands the number of objects that it rests "
    "on. "
)
_BOUNDARY = (
    "Boundary AP looks at the pixels near the outline only (2 % of the picture's diagonal): where it is much lower "
    "than AP, edges are coarse."
)
_CAUSES = (
    "How much AP50 would rise if the errors of one cause alone were mended (TIDE, Bolya et al. 2020). The costs do not "
    "add up: mending one cause uncovers or hides others. The pictures below have the most errors, of detections from "
    "their class's threshold on."
)
_OBJECTS = "Orange: what was found. Blue: the object that it should have been."
_DRAWN = dict.fromkeys(CAUSES, _OBJECTS) | {
    "doubled": "Orange: the second detection. Blue: the object.",
    "background": "Orange: what was found.",
    "missed": "Orange: the objects.",
}
_CONFUSION = (
    "What was found for what, at IoU 0.5 and each class's threshold. Rows are true classes, columns found ones; the "
    "column background holds what was missed, the row background what is no object."
)
_THRESHOLDS = (
    "Precision and recall over the score from which a detection counts, at IoU 0.5, and the threshold of each class "
    "whose F1 is best. It is the best on these very pictures: of a class with few objects do not expect it to last."
)
_CALIBRATION = (
    "Whether of detections with a score of 0.7 seven in ten are right, at IoU 0.5. Below the diagonal the model is too "
    "sure of itself, above it too modest."
)


def _cards(a: Analysis) -> str:
    kind, best = a.pairs.kind, a.best_together
    cards = [(score(a.intervals["AP"].value), f"{KIND_TITLES[kind]} AP")]
    cards.append((score(a.intervals["AP50"].value), f"{KIND_TITLES[kind]} AP50"))
    if a.boundary is not None:
        cards.append((score(_mean(a.boundary)), "Boundary AP"))
    cards += [
        (f"{best.precision:.0%}", f"precision from score {best.threshold:.2f} on"),
        (f"{best.recall:.0%}", f"recall from score {best.threshold:.2f} on"),
        (f"{a.counting.mean_error:.1f}", "objects miscounted an image"),
        (score(a.calibration.error), "calibration error"),
        (f"{len(a.pairs.pictures):,}", "images"),
        (f"{int(a.pairs.num_objects.sum()):,}", "objects"),
    ]
    return cards_of(cards)


def _intervals(a: Analysis) -> str:
    if len(a.pairs.pictures) < 2 or not a.pairs.num_objects.any():
        return ""
    said = "; ".join(f"{name} {_range(i)}" for name, i in a.intervals.items())
    words = _KIND_WORDS[a.pairs.kind]
    return (
        f'<p class="note">With other pictures of the same kind, {COVERAGE:.0%} of the time, {words}: {said} '
        f"(bootstrap over pictures, {DRAWS:,} draws).</p>"
    )


def _range(i: Interval, sign: str = "") -> str:
    return f"{i.low:{sign}.3f} to {i.high:{sign}.3f}"


def _against(a: Analysis) -> str:
    if a.against is None or not a.pairs.num_objects.any():
        return ""
    rows = []
    for name, i in a.against.items():
        verdict = (
            "better" if i.low > 0 else "worse" if i.high < 0 else "no difference that these pictures show"
        )
        rows.append(
            f"<tr><th>{name}</th><td>{i.value:+.3f}</td><td>{_range(i, '+')}</td><td>{i.above:.1%}</td>"
            f'<td class="words">{verdict}</td></tr>'
        )
    head = f"<tr><th>Number</th><th>difference</th><th>{COVERAGE:.0%} interval</th><th>draws above 0</th><th></th></tr>"
    return (
        f"{_table(head, rows)}"
        '<p class="note">Pictures drawn anew with replacement, the same for both (paired bootstrap).</p>'
    )


def _classes(a: Analysis) -> str:
    result = a.scores.kinds[a.pairs.kind]
    heads = ["Class", "objects", "AP", "AP50", "AP75"] + ["boundary AP"] * (a.boundary is not None)
    rows = []
    for k, name in _by_objects(a):
        values, sizes = result.per_class[name], result.by_size[name]
        cells = [
            f"{a.operating[k].objects:,}",
            bar(values["AP"]) + score(values["AP"]),
            score(values["AP50"]),
            score(values["AP75"]),
        ]
        if a.boundary is not None:
            cells.append(score(float(a.boundary[k].mean())))
        cells += [_with_count(sizes[s]["AP"], int(sizes[s]["objects"])) for s in "sml"]
        rows.append(_row(name, cells))
    return _folded([*heads, "small", "medium", "large"], rows)


def _by_objects(a: Analysis) -> list[tuple[int, str]]:
    """Classes that are there or found, as (index, name), the one with the most objects first."""
    names = list(a.scores.kinds[a.pairs.kind].per_class)
    order = sorted(range(len(names)), key=lambda k: -a.operating[k].objects)
    return [(k, names[k]) for k in order if a.operating[k].objects or a.operating[k].detections]


def _with_count(ap: float, count: int) -> str:
    return f"{score(ap)} <small>({count:,})</small>" if count else "–"


def _causes(a: Analysis) -> str:
    longest = max([1e-9, *a.causes.costs.values(), *a.causes.extra.values()])
    rows = []
    for name in (*CAUSES, *a.causes.extra):
        cost = (a.causes.costs | a.causes.extra)[name]
        count = f"{a.causes.counts[name]:,}" if name in a.causes.counts else ""
        rows.append(
            f"<tr><th>{name.capitalize()}</th><td>{count}</td><td>{bar(cost / longest)}{score(cost)}</td>"
            f'<td class="words">{MEANING[name]}</td></tr>'
        )
    head = "<tr><th>Cause</th><th>errors</th><th>AP50 that it costs</th><th></th></tr>"
    return _table(head, rows)


def _confusion(a: Analysis) -> str:
    names = [html.escape(n) for n in a.scores.kinds[a.pairs.kind].per_class]
    if len(names) > _MOST_CLASSES:
        rows = [
            f"<tr><th>{names[there]}</th><td>{names[found]}</td><td>{count:,}</td></tr>"
            for there, found, count in a.confusion.worst(20)
        ]
        note = (
            f'<p class="note">The most frequent confusions of {len(names)} classes; all are in {NUMBERS}.</p>'
        )
        return note + _table("<tr><th>is</th><th>found as</th><th>times</th></tr>", rows) if rows else ""
    counts, names = a.confusion.counts, [*names, "background"]
    totals = np.repeat(np.maximum(counts.sum(1), 1)[:, None], len(names), 1)
    totals[-1] = np.maximum(counts.sum(0), 1)  # background: of what was found, not of what is there
    rows = []
    for i, name in enumerate(names):
        cells = ""
        for j in range(len(names)):
            if i == j == len(names) - 1:
                cells += "<td></td>"  # background found as background is not counted
                continue
            share = counts[i, j] / totals[i, j]
            colour = "var(--c2)" if i == j else "var(--c7)"
            shade = f"background:color-mix(in srgb,{colour} {70 * share:.0f}%,transparent)"
            cells += f'<td style="{shade}">{counts[i, j]:,}</td>'
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    return _table("<tr><th>is, found as</th>" + "".join(f"<th>{n}</th>" for n in names) + "</tr>", rows)


def _thresholds(a: Analysis) -> str:
    x = GRID.tolist()
    curves = [
        Curve("precision", x, [o.precision if o.detections else math.nan for o in a.together]),
        Curve("recall", x, [o.recall for o in a.together]),
        Curve("F1", x, [o.f1 for o in a.together]),
    ]
    lines = chart("All classes together", curves, "score threshold", y_max=1.0, x_max=1.0)
    rows = [_row("one for all", _operating(a.best_together))]
    rows += [_row(name, _operating(a.operating[k])) for k, name in _by_objects(a)]
    table = _folded(["Class", "threshold", "precision", "recall", "F1"], rows, _MOST_BESIDE)
    return f'<div class="charts">{lines}<div>{table}</div></div>'


def _operating(o: Operating) -> list[str]:
    recall = f"{o.recall:.3f}" if o.objects else "–"
    return [f"{o.threshold:.2f}", f"{o.precision:.3f}" if o.detections else "–", recall, f"{o.f1:.3f}"]


def _counting(a: Analysis) -> str:
    c = a.counting
    error = c.found - c.there
    said = (
        f'<p class="note">Off by {c.mean_error:.2f} objects an image, by {c.bias:+.2f} with the signs kept; right in '
        f"{c.exact:.0%} of the images.</p>"
    )
    rows = [(name, int(((error >= low) & (error <= high)).sum())) for name, low, high in _ERROR_BINS]
    return said + bar_table(rows)


_FAR = 1 << 40
_ERROR_BINS = (
    ("more than 10 too few", -_FAR, -11),
    ("4 to 10 too few", -10, -4),
    ("2 or 3 too few", -3, -2),
    ("1 too few", -1, -1),
    ("right", 0, 0),
    ("1 too many", 1, 1),
    ("2 or 3 too many", 2, 3),
    ("4 to 10 too many", 4, 10),
    ("more than 10 too many", 11, _FAR),
)


def _calibration(a: Analysis) -> str:
    c = a.calibration
    if not c.count.sum():
        return ""
    curves = [
        Curve("detections", c.score.tolist(), c.share.tolist()),
        Curve("a score that is the share of right ones", [0.0, 1.0], [0.0, 1.0]),
    ]
    lines = chart(
        "Share of right detections over their score", curves, "score", y_max=1.0, x_max=1.0, marks=True
    )
    rows = [
        (f"{k / len(c.count):.1f} to {(k + 1) / len(c.count):.1f}", int(n)) for k, n in enumerate(c.count)
    ]
    bars = f"<figure><figcaption>Detections by score</figcaption>{bar_table(rows)}</figure>"
    said = f"Expected error {c.error:.3f}"
    if c.count.sum() < MIN_DETECTIONS or c.temperature == 1:
        said += "; there is too little to find a temperature from."
    else:
        said += (
            f"; with the temperature {c.temperature:.2f}, which <code>--calibrate</code> keeps in the run, "
            f"{c.error_after:.3f} (each half of the pictures with the other half's)."
        )
    return f'<p class="note">{said}</p><div class="charts">{lines}{bars}</div>'


def _mean(values: np.ndarray) -> float:
    """Mean of what is a number."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _row(name: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _folded(heads: Sequence[str], rows: Sequence[str], most: int = 20) -> str:
    """HTML table whose rows after the first `most` are shown on demand."""
    head = "<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"
    rest = _table(head, rows[most:])
    more = f"<details><summary>{len(rows) - most} more classes</summary>{rest}</details>" if rest else ""
    return _table(head, rows[:most]) + more


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""
