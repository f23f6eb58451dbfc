"""Measure models on this machine: seconds an image, peak memory, for inference and for a training step.

Every measurement is a process of its own. Finished ones are kept in OUT/bench.json, and a run that was stopped goes
on where it was; OUT/bench.md has the table and OUT/bench.svg the bars.

Without --models all of the zoo is measured, of models that differ only in their schedule one.

--gpu-report measures a GPU instead: the largest batch, training and inference of R50-FPN (--models: of any) in FP32,
TF32, FP16 and BF16; OUT gets a page, two charts and a JSON file that can be sent in. It ends with status 0 if the GPU
could run the model in any precision.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskrcnn.errors import UserError

if TYPE_CHECKING:
    from maskrcnn.bench.card import CardTask
    from maskrcnn.bench.measure import Measurement, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="names that `maskrcnn list` shows (all)")
    add("--modes", nargs="+", choices=("inference", "training"), default=["inference"])
    add("--precisions", nargs="+", choices=("fp32", "tf32", "bf16", "fp16"), help="(fp32; of a GPU all)")
    add("--size", nargs=2, type=int, metavar=("H", "W"), help="of the image (800 1216; of a GPU 800 1333)")
    add("--batch", nargs="+", type=int, metavar="N", default=[1], help="images at a time (1)")
    add("--gpu-report", action="store_true", help="the report on a GPU")
    add(
        "--max-batch",
        type=int,
        metavar="N",
        default=512,
        help="end of the search for the largest batch (512)",
    )
    add("--largest-batch", action="store_true", help="of each: search the largest batch that fits in memory")
    add(
        "--checkpointing", action="store_true", help="training with gradient checkpointing (ViT, InternImage)"
    )
    add("--device", help="cpu, cuda, cuda:1 ... (cpu; of a report on a GPU cuda)")
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
        help="what runs the network in inference: cpu, openvino, onnx, compile, cuda-graph or eager (the fastest)",
    )
    add("--tiny", action="store_true", help="the tiny variants, to see that everything runs")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")


def main(args: argparse.Namespace) -> int:
    if args.gpu_report:
        return _gpu_report(args)
    args.device, args.size = args.device or "cpu", args.size or [800, 1216]
    args.precisions = args.precisions or ["fp32"]
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
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
                result = bench.largest_batch(task, args.max_batch)
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


def _gpu_report(args: argparse.Namespace) -> int:
    from maskrcnn import processor
    from maskrcnn.bench.card_file import PRECISIONS, read_report
    from maskrcnn.bench.gpu_report import report_on
    from maskrcnn.engines.prepare import check_engine

    args.device, args.size = args.device or "cuda", args.size or ([96, 128] if args.tiny else [800, 1333])
    _check_names_and_counts(args)
    if args.engine is not None:
        check_engine(args.engine)
    if processor.parse_device(args.device).type == "cpu" and not args.tiny:
        raise UserError(
            "bench: --gpu-report measures a GPU, got --device cpu. Add --tiny to try the report on a CPU, or leave out "
            "--gpu-report to measure the CPU."
        )
    tasks = [
        _card_task(args, model, precision)
        for model in args.models or ["mask_rcnn_R_50_FPN_1x"]
        for precision in args.precisions or PRECISIONS
    ]
    path = report_on(tasks, args.out, timeout=args.timeout, say=print)
    rows = read_report(path)["rows"]
    failed = sum(row["error"] is not None for row in rows)
    if failed == len(rows):
        raise UserError(f"bench: expected a GPU that the model fits, got none: {rows[0]['error']}")
    print(f"{args.out / 'index.html'}; {len(rows) - failed} of {len(rows)} rows: {path}")
    return 1 if failed else 0


def _card_task(args: argparse.Namespace, model: str, precision: str) -> CardTask:
    """Settings of one row: few and quick calls for a trial with tiny models."""
    from maskrcnn.bench.card import CardTask
    from maskrcnn.cores import usable_cores

    workers = min(8, usable_cores())
    size = (args.size[0], args.size[1])
    task = CardTask(
        model=model,
        precision=precision,
        size=size,
        device=args.device,
        workers=workers,
        max_batch=args.max_batch,
        engine=args.engine or "eager",
    )
    if not args.tiny:
        return task
    quick = {"seconds": 0.0, "warm_up": 1, "workers": 0, "max_batch": min(3, args.max_batch)}
    return replace(task, tiny=True, **quick)


def _check_names_and_counts(args: argparse.Namespace) -> None:
    from maskrcnn import presets

    for name in args.models or ():
        presets.get(name)
    counts = {
        "size": min(args.size),
        "batch": min(args.batch),
        "repeats": args.repeats,
        "max-batch": args.max_batch,
    }
    for option, value in counts.items():
        if value < 1:
            raise UserError(f"bench: --{option} must be at least 1, got {value}.")


def _tasks(args: argparse.Namespace) -> list[Task]:
    from maskrcnn import processor
    from maskrcnn.bench.measure import Task
    from maskrcnn.engines.prepare import check_engine

    _check_names_and_counts(args)
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
