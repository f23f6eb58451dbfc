"""List the models: backbone, schedule, parameters, multiply-adds, published AP, and what was measured.

--json gives everything, one object a model: also the address and the licence of the published weights. --markdown
is the page docs/zoo.md.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

_COLUMNS = (
    ("name", "name"),
    ("backbone", "backbone"),
    ("schedule", "schedule"),
    ("parameters", "M params"),
    ("gflops", "GFLOPs"),
    ("box_ap", "box AP"),
    ("mask_ap", "mask AP"),
    ("keypoint_ap", "point AP"),
)

_PAGE = """# The zoo

Written by `maskrcnn list --markdown`. AP is as published, on COCO val2017, or on the validation part of the data that
the schedule names. Parameters and multiply-adds (one is one; 800 x 1280, of ViTDet 1024 x 1024, 1000 proposals, 100
detections) are counted here. Seconds and peak memory were measured here by `maskrcnn bench`{machine}: random weights,
100 detections. The name links to the published weights.

"""


_USUAL_NAME = 56  # letters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, one object a model")
    form.add_argument("--markdown", action="store_true", help="as the page of the documentation")


def main(args: argparse.Namespace) -> int:
    from maskrcnn.zoo.table import listing

    rows = listing()
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.markdown:
        print(_page(rows), end="")
    else:
        _print_table(rows)
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    cells = [[title for _, title in _COLUMNS], *([_text(row, key) for key, _ in _COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = max(len(name) for name, *_ in cells if len(name) <= _USUAL_NAME)
    for line in cells:
        left, end = "", 0
        for cell, width in zip(line[:3], widths[:3], strict=True):
            end += width + 2  # a longer name takes its room from what follows
            left = f"{left}{cell}  ".ljust(end)
        print((left + "  ".join(c.rjust(w) for c, w in zip(line[3:], widths[3:], strict=True))).rstrip())


def _page(rows: list[dict[str, Any]]) -> str:
    titles = [*(title for _, title in _COLUMNS), "fp32: s", "MiB", "bf16: s", "MiB", "licence"]
    machines = {row["measured"]["device"]: row["measured"]["size"] for row in rows if "measured" in row}
    machine = "".join(f" on {name}, {h} x {w}" for name, (h, w) in machines.items())
    lines = [_PAGE.format(machine=machine) + "| " + " | ".join(titles) + " |"]
    lines.append("|---|---|---|" + "---:|" * (len(titles) - 4) + "---|")
    for row in rows:
        name, *rest = (_text(row, key) for key, _ in _COLUMNS)
        name = f"[`{name}`]({row['weights']})" if row["weights"] else f"`{name}`"
        found = [row.get("measured", {}).get(precision, {}) for precision in ("fp32", "bf16")]
        here = [
            _number(f.get(key), digits) for f in found for key, digits in (("seconds", 2), ("memory_mib", 0))
        ]
        lines.append("| " + " | ".join([name, *rest, *here, row["licence"] or "-"]) + " |")
    return "\n".join(lines) + "\n"


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "parameters":
        value = None if value is None else value / 1e6
    return _number(value, 1) if key not in ("name", "backbone", "schedule") else str(value or "-")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
