"""Log of a run: the record (`RUN/log.jsonl`), and the lines and bar for the person in front of it.

The record is one JSON object a line. Every line has `kind` and `iteration`; and by kind:

    config  config: the resolved config; parameters, trained_parameters: counts; device, processes
    train   losses: {term: mean since the last line}, their sum under `loss`; lr; images_per_second; seconds
    eval    bbox: {name: value}, segm: {name: value} (COCO's numbers); validation_losses: {term: mean},
            their sum under `validation_loss`; seconds; best: whether this is the best so far; took: its own seconds
    event   message

`iteration` counts optimiser steps done; `seconds` is training time without evaluations, summed over resumes.
A number that is not finite is null. On resume the record is cut back to the checkpoint's iteration, so that no
iteration is told twice.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from maskrcnn.files import as_user_error, write_atomic
from maskrcnn.training.trackers import Trackers


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a record; those that are none are left out: one that a kill cut off, or that somebody else
    wrote.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    entries = [_parsed(line) for line in lines]
    return [e for e in entries if isinstance(e, dict) and _is_entry(e)]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_entry(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("kind"), str) and type(entry.get("iteration")) is int


class RunLog:
    """Writer of the record; with `active` False (ranks other than 0) it does nothing.

    resume_at: keep the lines up to this iteration; None starts anew. trackers: `training.trackers` that get it too.
    """

    def __init__(
        self,
        run: Path,
        *,
        resume_at: int | None,
        active: bool = True,
        trackers: Sequence[str] = (),
        say: Callable[[str], object] = print,
    ):
        path = run / "log.jsonl"
        kept = [] if resume_at is None else [e for e in read_log(path) if e["iteration"] <= resume_at]
        self.evaluations = [e for e in kept if e["kind"] == "eval"]
        self._file: FileIO | None = None
        self.trackers = Trackers(trackers if active else (), run, resume_at, say)
        if active:
            write_atomic(path, "".join(json.dumps(e) + "\n" for e in kept))
            self._file = path.open(
                "ab", buffering=0
            )  # what a full disk refuses must not come again at the end

    def write(self, kind: str, iteration: int, **fields: Any) -> None:
        entry = _finite({"kind": kind, "iteration": iteration, **fields})
        if kind == "eval":
            self.evaluations.append(entry)
        if self._file:
            with as_user_error(Path(self._file.name)):
                _write_all(self._file, (json.dumps(entry) + "\n").encode())
        if kind == "config":
            self.trackers.config(entry["config"])
        elif kind in ("train", "eval"):
            self.trackers.entry(kind, iteration, entry)

    def sync(self) -> None:
        """Sync the record to the disk, before a checkpoint that relies on it."""
        if self._file:
            with as_user_error(Path(self._file.name)):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file:
            with self._file:
                self.sync()
        self.trackers.close()


def _write_all(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


class Display:
    """A progress bar with losses, rate, images per second and time left on a terminal; lines elsewhere."""

    def __init__(self, *, active: bool = True, stream: TextIO | None = None):
        from rich.console import Console

        self.active = active
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._bar = None
        self._total = 0

    def say(self, text: str) -> None:
        if self.active:
            self._console.print(text, markup=False)

    def start(self, iteration: int, total: int) -> None:
        self._total = total
        if not (self.active and self._console.is_terminal):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=total, completed=iteration)
        self._bar.start()

    def step(self, iteration: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=iteration)

    def train_line(self, iteration: int, entry: dict[str, Any], seconds_left: float) -> None:
        terms = "  ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in entry["losses"].items())
        text = (
            f"loss {entry['loss']:.3f}  {terms}  lr {entry['lr']:.2g}  "
            f"{entry['images_per_second']:.1f} images/s  {_clock(seconds_left)} left"
        )
        if self._bar:
            self._bar.update(self._task, completed=iteration, description=text)
        else:
            self.say(f"{iteration}/{self._total}  {text}")

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


class Stopwatch:
    """Clock of the seconds while it runs."""

    def __init__(self, seconds: float = 0.0):
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def start(self) -> None:
        self._since = time.monotonic()

    def pause(self) -> None:
        self._before, self._since = self.seconds, None


class Window:
    """Means since the last line of the log; a resumed run goes on with what the checkpoint had of it.

    start: seconds of training at the last line.
    """

    def __init__(self, start: float = 0.0, count: int = 0, sums: dict[str, float] | None = None):
        self.start, self._count, self._sums = start, count, dict(sums or {})

    def state(self) -> dict[str, Any]:
        return {"count": self._count, "sums": self._sums}

    def add(self, losses: dict[str, float]) -> None:
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def close(self, seconds: float) -> tuple[dict[str, float], float]:
        """Return the mean losses and the mean seconds an iteration, and start anew."""
        means = {name: total / self._count for name, total in self._sums.items()}
        took = max(seconds - self.start, 1e-9) / self._count
        self.start, self._count, self._sums = seconds, 0, {}
        return means, took


def _clock(seconds: float) -> str:
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None: JSON has no words for them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
