"""What threads that wait for one another cost, on a quiet machine and beside other work: OpenMP's `GOMP_SPINCOUNT`.

    python benchmarks/waiting.py [--models NAME ...] [--neighbours 0 2] [--rounds 3] [--out DIR]

A thread that has done its share of an operator waits for the others by turning round, libgomp's by itself 300,000
times, and then sleeps. Beside other work it turns on the core that the one it waits for should have. `import maskrcnn`
asks for 10,000 turns. Each figure is a process of its own (`python -m maskrcnn.bench.measure`) beside `neighbours` that
compute without end, one thread each; counts take turns, and the table has medians of seconds. --out: JSON and Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskrcnn.bench.measure import Task, in_process
from maskrcnn.files import write_atomic
from maskrcnn.processor import describe

COUNTS = (300_000, 10_000, 1_000, 0)  # the first is libgomp's own, the second ours
SIZES = {"mask_rcnn_mobilenet_v2_FPN": (256, 320)}  # a small model on a small picture: many short operators


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["mask_rcnn_mobilenet_v2_FPN", "mask_rcnn_R_50_FPN_3x"]
    )
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for mode in ("inference", "training"):
            for count in args.neighbours:
                rows.append(row(model, mode, count, args.rounds))
                print(line(rows[-1]), flush=True)
    if args.out:
        machine = describe().line()
        write_atomic(
            args.out / "waiting.json", json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
        )
        write_atomic(args.out / "waiting.md", page(machine, rows))


def row(model: str, mode: Any, neighbours: int, rounds: int) -> dict[str, Any]:
    task = Task(model=model, mode=mode, size=SIZES.get(model, (800, 1067)), repeats=3)
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    with working(neighbours):
        for _ in range(rounds):
            for count in COUNTS:
                seconds[count].append(measured(task, count))
    medians = {str(count): round(statistics.median(values), 4) for count, values in seconds.items()}
    return {"model": model, "mode": mode, "size": task.size, "neighbours": neighbours, "seconds": medians}


@contextlib.contextmanager
def working(count: int) -> Iterator[None]:
    """Let `count` processes compute meanwhile."""
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measured(task: Task, count: int) -> float:
    """Seconds of an image or a step in a process whose threads turn `count` times."""
    environment = dict(os.environ) | {"GOMP_SPINCOUNT": str(count)}
    answer, error = in_process("maskrcnn.bench.measure", asdict(task), None, environment)
    if answer is None or answer["seconds"] is None:
        sys.exit(f"{task.model}: {error or answer}")
    return answer["seconds"]


def line(row: dict[str, Any]) -> str:
    values = " | ".join(f"{value:.3g}" for value in row["seconds"].values())
    height, width = row["size"]
    return f"| {row['model']}, {height}x{width} | {row['mode']} | {row['neighbours']} | {values} |"


def page(machine: str, rows: list[dict[str, Any]]) -> str:
    heads = " | ".join(f"{count:,} turns" for count in COUNTS)
    lines = [
        "# Threads that wait",
        "",
        f"{machine}. Made by `benchmarks/waiting.py`, which says what is measured and how: seconds an image or a",
        "training step. 300,000 turns are libgomp's own, 10,000 what `import maskrcnn` asks for.",
        "",
        f"| model | | neighbours | {heads} |",
        "|---|---|---:|" + "---:|" * len(COUNTS),
        *map(line, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
