"""Measure models on this machine: seconds an image, peak memory, for inference and for a training step.

Every measurement is a process of its own. Finished ones are kept in OUT/bench.json, and a run that was stopped goes
on where it was; OUT/bench.md has the table and OUT/bench.svg the bars.

Without --models all of the zoo is measured, of models that differ only in their schedule one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.bench.measure import Measurement, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="names that `maskrcnn list` shows (all)")
    add("--modes", nargs="+", choices=("inference", "training"), default=["inference"])
    add("--precisions", nargs="+", choices=("fp32", "tf32", "bf16", "fp16"), default=["fp32"])
    add("--size", nargs=2, type=int, metavar=("H", "W"), default=[800, 1216], help="of the image (800 1216)")
    add("--batch", nargs="+", type=int, metavar="N", default=[1], help="images at a time (1)")
    add(
        "--largest-batch", action="store_true", help="double the batch until memory is out, and keep the last"
    )
    add(
        "--checkpointing", action="store_true", help="training with gradient checkpointing (ViT, InternImage)"
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (cpu)")
    add("--num-threads", type=int, metavar="N", help="CPU threads (all cores)")
    add(
        "--repeats",
        type=int,
        metavar="N",
        default=3,
        help="timed runs after a warm-up; the median counts (3)",
    )
    add("--timeout", type=float, metavar="S", help="give up on a measurement after so many seconds")
    add(
        "--engine",
        metavar="NAME",
        help="what runs the network in inference: cpu, openvino, onnx, compile or eager (the fastest)",
    )
    add("--tiny", action="store_true", help="the tiny variants, to see that everything runs")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")


def main(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from maskrcnn.bench import measure as bench
    from maskrcnn.files import check_writable_folder

    tasks = _tasks(args)
    check_writable_folder(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    found = _read(args.out / "bench.json")
    todo = [t for t in tasks if t not in {m.task for m in found if m.error is None}]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bench", total=len(todo))
        for task in todo:
            progress.update(bar, description=f"{task.model} {task.mode} {task.precision}")
            if args.largest_batch:
                result = bench.largest_batch(task)
                result = result or bench.Measurement(task=task, error="not one image fits")
            else:
                result = next(bench.measure_all([task], args.timeout))
            found = [m for m in found if m.task != result.task] + [result]
            _write(args.out, found)
            progress.advance(bar)
    print(bench.table(found), end="")
    for machine in sorted({m.machine for m in found if m.machine}):
        print(f"on {machine}")
    failed = [m for m in found if m.error is not None and m.task in todo]
    print(f"{len(found) - len(failed)} measurements: {args.out / 'bench.json'}")
    return 1 if failed else 0


def _tasks(args: argparse.Namespace) -> list[Task]:
    from maskrcnn import presets, processor
    from maskrcnn.bench.measure import Task
    from maskrcnn.engines.prepare import check_engine

    for name in args.models or ():
        presets.get(name)
    for option, value in (("size", min(args.size)), ("batch", min(args.batch)), ("repeats", args.repeats)):
        if value < 1:
            raise UserError(f"bench: --{option} must be at least 1, got {value}.")
    processor.parse_device(args.device)
    if args.engine is not None:
        check_engine(args.engine)
    return [
        Task(
            model=model,
            mode=mode,
            precision=precision,
            size=(args.size[0], args.size[1]),
            batch=batch,
            device=args.device,
            threads=args.num_threads,
            repeats=args.repeats,
            checkpointing=args.checkpointing,
            tiny=args.tiny,
            engine=args.engine,
        )
        for model in args.models or _structures()
        for mode in args.modes
        for precision in args.precisions
        for batch in args.batch
    ]


def _structures() -> list[str]:
    """One preset of each network: schedules do not change its speed."""
    from dataclasses import replace

    from maskrcnn import presets
    from maskrcnn.config import to_json

    names: dict[str, str] = {}
    for name, preset in presets.PRESETS.items():
        names.setdefault(to_json(replace(preset().model, name="")), name)
    return list(names.values())


def _read(path: Path) -> list[Measurement]:
    from maskrcnn.bench.measure import from_dict

    if not path.exists():
        return []
    try:
        return [from_dict(values) for values in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: expected the results of an earlier `bench`, got something else.") from None


def _write(out: Path, found: list[Measurement]) -> None:
    from dataclasses import asdict

    from maskrcnn.bench.measure import chart, table
    from maskrcnn.files import write_atomic

    write_atomic(out / "bench.json", json.dumps([asdict(m) for m in found], indent=1) + "\n")
    write_atomic(out / "bench.md", table(found))
    write_atomic(out / "bench.svg", chart(found))
