"""Report on a GPU: the largest batch and the speed of training and inference in each precision, beside published
figures of other cards.

A card's results are one JSON file, named after the card, that people can send in; the page and the two charts are made
of it. Every model and precision is measured in a process of its own (`bench.card`), and a report that was stopped goes
on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.bench import gpu_page
from maskrcnn.bench.card_file import FORMAT, Report, file_name, read_report
from maskrcnn.bench.measure import in_process
from maskrcnn.errors import UserError
from maskrcnn.files import check_writable_folder, write_atomic

if TYPE_CHECKING:
    from maskrcnn.bench.card import CardTask


def report_on(
    tasks: Sequence[CardTask],
    out: Path,
    *,
    timeout: float | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Measure the tasks that a report in `out` does not have yet, and write the report, page and charts after each.

    Returns:
        The JSON file.

    Raises:
        UserError: no such device, or `out` holds a file of the report's name that is none.
    """
    facts = _facts(tasks[0].device)
    check_writable_folder(out)
    path = out / f"{file_name(facts['card'], tasks[0].tiny)}.json"
    report = _begun(path, facts, tasks[0])
    for task in tasks:
        done = _same_settings(report, task)
        if done is not None and done["error"] is None:
            continue
        say(f"{task.model} {task.precision}")
        row, error = in_process("maskrcnn.bench.card", asdict(task), timeout)
        row = row or {"error": error}
        if row["error"] is not None:
            say(f"{task.model} {task.precision}: {row['error']}")
        row |= {"model": task.model, "precision": task.precision, "task": _settings(task)}
        report["rows"] = [r for r in report["rows"] if r is not done] + [row]
        report["date"] = datetime.now(UTC).date().isoformat()
        write_atomic(path, json.dumps(report, indent=1) + "\n")
        gpu_page.write_report(report, out)
    if not (out / "index.html").exists():
        gpu_page.write_report(report, out)
    return path


def _facts(device: str) -> dict[str, Any]:
    """Facts of the card, asked in another process: this one takes no memory of it."""
    facts, error = in_process("maskrcnn.bench.card", {"facts": device}, None)
    if facts is None or "error" in facts:
        raise UserError(error or (facts or {})["error"])
    return facts


def _begun(path: Path, facts: dict[str, Any], task: CardTask) -> Report:
    if path.exists():
        kept = read_report(path)
        if all(kept.get(name) == facts[name] for name in ("card", "torch", "driver")):
            return kept
    return {"format": FORMAT, **facts, "tiny": task.tiny, "date": "", "rows": []}


def _same_settings(report: Report, task: CardTask) -> dict[str, Any] | None:
    wanted = _settings(task)
    return next((row for row in report["rows"] if row.get("task") == wanted), None)


def _settings(task: CardTask) -> dict[str, Any]:
    return {**asdict(task), "size": list(task.size)}
