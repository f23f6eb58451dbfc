"""What threads that wait for one another cost, alone and beside other programs: OpenMP's `GOMP_SPINCOUNT`.

    python benchmarks/waiting.py [--models NAME ...] [--rounds 3] [--out DIR]

A thread that has done its share of an operator waits for the others by turning round, libgomp's by itself 300,000
times, and then sleeps. Beside other work it turns on the core that the one it waits for should have. `import maskrcnn`
asks for 10,000 turns. Each figure is a process of its own (`python -m maskrcnn.bench.measure`), alone, beside as many
programs of one thread as there are cores, and beside another process of the same model that turns as often. Neighbours
have sessions of their own, as other services have; counts take turns, and the table has medians of seconds an image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskrcnn.bench.measure import Task, in_process
from maskrcnn.cores import usable_cores
from maskrcnn.files import write_atomic
from maskrcnn.processor import describe

COUNTS = (300_000, 10_000, 1_000)  # the first is libgomp's own, the second ours
CASES = ("alone", "beside programs of one thread", "beside another of its kind")
SIZES = {"mask_rcnn_mobilenet_v2_FPN": (256, 320)}  # a small model on a small picture: many short operators
REPEATS = {"mask_rcnn_mobilenet_v2_FPN": 20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["mask_rcnn_mobilenet_v2_FPN", "mask_rcnn_R_50_FPN_3x"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for waiting.json and waiting.md")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for case in CASES:
            rows.append(row(model, case, args.rounds))
            print(line(rows[-1]), flush=True)
    if args.out:
        machine = describe().line()
        write_atomic(
            args.out / "waiting.json", json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
        )
        write_atomic(args.out / "waiting.md", page(machine, rows))


def row(model: str, case: str, rounds: int) -> dict[str, Any]:
    task = Task(model=model, size=SIZES.get(model, (800, 1067)), repeats=REPEATS.get(model, 3))
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in COUNTS:
            with beside(case, task, count):
                seconds[count].append(measured(task, count))
    medians = {str(count): round(statistics.median(values), 4) for count, values in seconds.items()}
    return {"model": model, "size": task.size, "case": case, "rounds": rounds, "seconds": medians}


@contextlib.contextmanager
def beside(case: str, task: Task, count: int) -> Iterator[None]:
    """Let the neighbours of a case compute meanwhile."""
    command, number = [sys.executable, "-S", "-c", "while True: pass"], usable_cores()
    if case == CASES[2]:
        endless = json.dumps(asdict(replace(task, repeats=10**6)))
        command, number = [sys.executable, "-m", "maskrcnn.bench.measure", endless], 1
    how: dict[str, Any] = {"env": environment(count), "stdout": subprocess.DEVNULL, "start_new_session": True}
    busy = [subprocess.Popen(command, **how) for _ in range(0 if case == CASES[0] else number)]
    try:
        if case == CASES[2]:
            time.sleep(10)  # until it computes
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def environment(count: int) -> dict[str, str]:
    return dict(os.environ) | {"GOMP_SPINCOUNT": str(count)}


def measured(task: Task, count: int) -> float:
    """Seconds of an image in a process whose threads turn `count` times."""
    answer, error = in_process("maskrcnn.bench.measure", asdict(task), None, environment(count))
    if answer is None or answer["seconds"] is None:
        sys.exit(f"{task.model}: {error or answer}")
    return answer["seconds"]


def line(row: dict[str, Any]) -> str:
    values = " | ".join(f"{value:.3g}" for value in row["seconds"].values())
    height, width = row["size"]
    return f"| {row['model']}, {height}x{width} | {row['case']} | {values} |"


def page(machine: str, rows: list[dict[str, Any]]) -> str:
    heads = " | ".join(f"{count:,} turns" for count in COUNTS)
    lines = [
        "# Threads that wait",
        "",
        f"{machine}. Made by `benchmarks/waiting.py`, which says what is measured and how: seconds an image,",
        f"medians of {rows[0]['rounds']}. 300,000 turns are libgomp's own, 10,000 what `import maskrcnn` asks for.",
        "",
        f"| model | | {heads} |",
        "|---|---|" + "---:|" * len(COUNTS),
        *map(line, rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
