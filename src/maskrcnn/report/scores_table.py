"""HTML table of COCO's numbers with their meaning."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

KIND_TITLES = {"bbox": "Box", "segm": "Mask", "keypoints": "Key points"}


def scores_table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    """HTML table with a row for each number, a column for each kind."""
    kinds = [k for k in KIND_TITLES if k in numbers]
    names = list(dict.fromkeys(name for kind in kinds for name in numbers[kind]))
    head = "<tr><th>Number</th>" + "".join(f"<th>{KIND_TITLES[k]}</th>" for k in kinds) + "<th></th></tr>"
    rows = []
    for name in names:
        cells = "".join(f"<td>{score(numbers[k].get(name))}</td>" for k in kinds)
        rows.append(f'<tr><th>{html.escape(name)}</th>{cells}<td class="words">{meaning(name)}</td></tr>')
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""


def score(value: Any) -> str:
    """Format a score with three decimals; a dash for COCO's -1 (nothing to score) and for numbers that are not
    finite.
    """
    number = float(value) if isinstance(value, int | float) else math.nan
    return f"{number:.3f}" if math.isfinite(number) and number >= 0 else "–"


def meaning(name: str) -> str:
    """Explain COCO's names in words: AP, AP50, APs, AR100, ARl ..."""
    kind, rest = name[:2], name[2:]
    words = {"AP": "mean average precision", "AR": "mean recall"}.get(kind, "")
    sizes = {
        "s": "small objects, below 32² pixels",
        "m": "medium objects",
        "l": "large objects, above 96² pixels",
    }
    if rest in sizes:
        return f"{words}, {sizes[rest]}"
    if rest.isdigit():
        return f"{words} at IoU {int(rest) / 100:.2f}" if kind == "AP" else f"{words}, up to {rest} an image"
    return f"{words} over IoU 0.50 to 0.95" if name == "AP" else words
