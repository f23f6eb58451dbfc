"""How often something fails that must not: damaged and odd files of every kind, scores, kills.

    python benchmarks/reliability.py [--counts GROUP=N ...] [--first SEED] [--out DIR]

labels     label files of every format, changed at random, and looked at as `doctor` and training do
pictures   picture files of every format, damaged
coco       COCO data and results, changed at random, given to the evaluator with either of its libraries
weights    weight files of every kind, damaged, and loaded
evaluator  random data and results, whose scores are compared with pycocotools' to the last bit
kills      training runs killed (SIGKILL) at any of their writes and resumed, whose files are compared byte by byte

A file must be read, and then hold nothing impossible, or be refused by a `UserError` of one line; a traceback, a
warning, a process that dies or takes longer than a minute is a failure. Each group works in a process of its own.
Groups that are not counted in this run keep what DIR/reliability.json has of them; docs/reliability.md has the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from maskrcnn.memory import forget_peak, peak_mib

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCS = ROOT / "docs/reliability.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- table -->\n", "<!-- end of table -->\n"
COUNTS = {
    "labels": 10_000,
    "pictures": 10_000,
    "coco": 5000,
    "weights": 2500,
    "evaluator": 3000,
    "kills": 200,
}
GOOD = ("read", "refused", "equal", "resumed")
LIMIT = 60.0  # seconds without an answer
KILLS_AT_A_TIME = 50
Case = tuple[str, Callable[[], str | list[str]]]  # the row it counts in, and what tries it


# --- what is tried: each takes a count, the first seed and a folder to write in


def labels(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests import mutate

    for reader in mutate.READERS:
        for seed in range(first, first + count // len(mutate.READERS)):
            yield f"label files: {reader}", partial(mutate.outcome, reader, seed, folder / reader)


def pictures(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests.images import mutate_pictures

    def look(name: str, data: bytes) -> str:
        path = folder / name
        path.write_bytes(data)
        said = mutate_pictures.outcome(path)
        path.unlink()
        return said

    for name, data in mutate_pictures.mutated(mutate_pictures.made_pictures(), count, first):
        yield f"pictures: {name.split('.', 1)[1]}", partial(look, name, data)


def coco(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests import coco_cases

    def score(file: str, library: str, seed: int) -> str:
        os.environ["MASKRCNN_COCO_BACKEND"] = library
        return coco_cases.file_outcome(file, seed, folder)

    for file in coco_cases.FILES:
        for library in ("hotcoco", "pycocotools"):
            for seed in range(first, first + count // 4):
                yield f"{file}, scored by {library}", partial(score, file, library, seed)


def weights(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests.weights import mutate_weights

    for kind in mutate_weights.KINDS:
        for seed in range(first, first + count // len(mutate_weights.KINDS)):
            yield f"weight files: {kind}", partial(mutate_weights.outcome, kind, seed, folder)


def evaluator(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests import coco_cases

    for kind in coco_cases.KINDS:
        for seed in range(first, first + count // len(coco_cases.KINDS)):
            yield f"scores: {kind}", partial(coco_cases.outcome, kind, seed)


def kills(count: int, first: int, folder: Path) -> Iterator[Case]:
    from tests.training.kills import killed_runs

    def kill(number: int, seed: int) -> list[str]:
        killed, failed = killed_runs(number, seed)
        return ["resumed"] * (killed - len(failed)) + failed

    for k, at in enumerate(range(0, count, KILLS_AT_A_TIME)):
        yield "kills", partial(kill, min(KILLS_AT_A_TIME, count - at), first + k)


GROUPS = {f.__name__: f for f in (labels, pictures, coco, weights, evaluator, kills)}


# --- one process tries, the other counts, and goes on where the first one dies


def work(group: str, count: int, first: int, start: int) -> None:
    """Try the cases of a group from number `start` on; a line of JSON before each case and one after."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is none of the lines
    sys.path.insert(0, str(ROOT))

    def tell(*values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for number, (row, case) in enumerate(GROUPS[group](count, first, Path(folder))):
            if number >= start:
                tell("begun", number, row)
                forget_peak()
                before = peak_mib() or 0
                said = case()
                after = peak_mib() or 0
                tell("ended", said if isinstance(said, list) else [said], after - before)


def try_group(group: str, count: int, first: int) -> dict[str, Any]:
    """Rows of a group with what came of their cases, and what failed."""
    rows: dict[str, Counter[str]] = {}
    failures: list[str] = []
    start, most_memory, began = 0, 0.0, time.monotonic()

    def note(row: str, number: int, said: str) -> None:
        good = said in GOOD
        rows.setdefault(row, Counter())[said if good else "failed"] += 1
        if not good:
            failures.append(f"{row}, case {number}: {said[:300]}")
            print(f"\n{failures[-1]}", flush=True)

    while True:
        command = [sys.executable, __file__, "--work", group, str(count), str(first), str(start)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout
            assert worker.stderr
            watch = Watch(worker, None if group == "kills" else LIMIT)
            number, row, last_shown = start, group, 0.0
            begun = False
            for line in worker.stdout:
                watch.answered()
                what, *values = json.loads(line)
                if what == "begun":
                    (number, row), begun = values, True
                    continue
                begun = False
                for said in values[0]:
                    note(row, number, said)
                most_memory = max(most_memory, values[1])
                if time.monotonic() > last_shown + 1:
                    tried = sum(sum(said.values()) for said in rows.values())
                    print(f"\r{group}: {tried} of {count}, {len(failures)} failed", end="", flush=True)
                    last_shown = time.monotonic()
            errors = watch.end()
        if worker.returncode == 0:
            break
        if not begun:
            raise SystemExit(f"{group}: {errors or worker.returncode}")
        note(row, number, watch.stopped or f"the process ended with {worker.returncode} ({errors})")
        start = number + 1
    seconds = time.monotonic() - began
    tried = sum(sum(said.values()) for said in rows.values())
    print(f"\r{group}: {tried} tried, {len(failures)} failed, {seconds:.0f} s", flush=True)
    return {
        "rows": {row: dict(said) for row, said in rows.items()},
        "failures": failures[:50],
        "first_seed": first,
        "seconds": round(seconds),
        "most_memory_of_a_case_mb": round(most_memory),
        **about(),
    }


class Watch:
    """Kills a worker that does not answer for `limit` seconds, and keeps what it says on its other channel."""

    def __init__(self, worker: subprocess.Popen[str], limit: float | None) -> None:
        self.worker, self.limit, self.last, self.over = worker, limit, time.monotonic(), False
        self.stopped, self.said = "", ""
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self._wait, self._listen)]
        for thread in self.threads:
            thread.start()

    def answered(self) -> None:
        self.last = time.monotonic()

    def end(self) -> str:
        """The last line of what the worker said."""
        self.over = True
        for thread in self.threads:
            thread.join()
        return (self.said.strip().splitlines() or [""])[-1][:200]

    def _wait(self) -> None:
        while not self.over:
            if self.limit and time.monotonic() - self.last > self.limit:
                self.stopped = f"no answer in {self.limit:.0f} s"
                self.worker.kill()
                return
            time.sleep(0.2)

    def _listen(self) -> None:
        assert self.worker.stderr
        for line in self.worker.stderr:
            self.said = (self.said + line)[-5000:]


# --- the table


def about() -> dict[str, Any]:
    """The version that was tried, and where."""
    import torch

    import maskrcnn

    return {
        "version": maskrcnn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}",
    }


def table(results: dict[str, Any]) -> str:
    lines = [
        "| kind | tried | failed | read, equal or resumed | refused in one line |",
        "|---|---|---|---|---|",
    ]
    for group in GROUPS:
        for row, said in results.get(group, {}).get("rows", {}).items():
            refused, failed = said.get("refused", 0), said.get("failed", 0)
            tried = sum(said.values())
            lines.append(f"| {row} | {tried:,} | {failed:,} | {tried - refused - failed:,} | {refused:,} |")
    tried = sum(sum(said.values()) for group in results.values() for said in group["rows"].values())
    failed = sum(said.get("failed", 0) for group in results.values() for said in group["rows"].values())
    lines.append(f"| **all** | **{tried:,}** | **{failed:,}** | | |")
    places = {
        f"{g['version']} on Python {g['python']}, PyTorch {g['torch']}, {g['machine']}"
        for g in results.values()
    }
    return "\n".join([*lines, "", f"Version {'; '.join(sorted(places))}.", ""])


def write(results: dict[str, Any], out: Path) -> None:
    from maskrcnn.files import write_atomic

    write_atomic(out / "reliability.json", json.dumps(results, indent=1) + "\n")
    write_atomic(out / "reliability.md", f"# Reliability: tried and failed\n\n{table(results)}")
    if out.resolve() == RESULTS and DOCS.exists():
        before, rest = DOCS.read_text().split(TABLE_BEGINS)
        after = rest.split(TABLE_ENDS)[1]
        write_atomic(DOCS, f"{before}{TABLE_BEGINS}{table(results)}{TABLE_ENDS}{after}")


def parse_counts(texts: list[str]) -> dict[str, int]:
    counts = {}
    for text in texts:
        group, _, number = text.partition("=")
        if group not in GROUPS or not number.isdecimal():
            raise SystemExit(f"--counts {text}: expected GROUP=N with GROUP of {', '.join(GROUPS)}.")
        counts[group] = int(number)
    return counts


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], *map(int, sys.argv[3:]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts", nargs="+", metavar="GROUP=N", default=[f"{g}={n}" for g, n in COUNTS.items()]
    )
    parser.add_argument(
        "--first", type=int, default=1000, metavar="SEED", help="make test has those up to 200 (1000)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    path = args.out / "reliability.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for group, count in parse_counts(args.counts).items():
        results[group] = try_group(group, count, args.first)
        write(results, args.out)
    return int(any(group["failures"] for group in results.values()))


if __name__ == "__main__":
    sys.exit(main())
