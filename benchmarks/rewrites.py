"""Gain of each rewrite of `engines.table` on this processor: the part that it speeds up with and without it, by turns.

    python benchmarks/rewrites.py --out benchmarks/results [--isa AVX2] [--repeats 5]

A part is the module whose method is rewritten, all of that class in the model together: their calls of one prediction
(or one training step) are timed by hooks around the method, so the rest of the model does not hide them. The whole is
the prediction of one picture of 800 x 1088 with 1,000 proposals and 100 detections (`bench.measure`), or the step.
Writes rewrites_<kind>.json and .md. `--isa AVX2` limits oneDNN, PyTorch and MKL to AVX2, to measure that kind of
processor on a richer one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SIZE = (800, 1088)
# Model, mode, and the rewrites that are looked at there.
CASES = (
    ("mask_rcnn_R_50_FPN_3x", "inference", ("Conv.forward", "RPNHead.forward", "BottleneckBlock.forward", "FPN.forward",
                                            "BoxHead.predict_rois", "BoxHead.predict_pooled", "MaskHead.forward")),
    ("mask_rcnn_R_50_FPN_3x", "training", ("Conv.forward", "RPNHead.forward", "MaskHead.forward")),
    ("mask_rcnn_mobilenet_v2_FPN", "inference", ("Conv.forward", "RPNHead.forward", "FPN.forward")),
    ("mask_rcnn_R_50_FPN_3x_gn", "inference", ("GroupNorm.forward",)),
    ("mask_rcnn_internimage_t_fpn_1x_coco", "inference", ("MLP.forward", "DCNv3.modulation")),
    ("mask_rcnn_deit_adapter_small_fpn_3x_coco", "inference", ("DeformableAttention.modulation", "ViTAdapter.merge")),
)  # fmt: skip


def timed(model: Any, module: type, method: str) -> Callable[[], float]:
    """Clock around a method of every module of a class: seconds since the last call of what is returned."""
    total = [0.0]
    for one in model.modules():
        if type(one) is module:
            inner = getattr(one, method)

            def outer(*args: Any, inner: Any = inner, **how: Any) -> Any:
                start = time.perf_counter()
                try:
                    return inner(*args, **how)
                finally:
                    total[0] += time.perf_counter() - start

            setattr(one, method, outer)

    def seconds() -> float:
        value, total[0] = total[0], 0.0
        return value

    return seconds


def measure(name: str, mode: str, wanted: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    from maskrcnn import processor
    from maskrcnn.bench.measure import Task, _build, _inference, _training
    from maskrcnn.engines.rewrites import plain, rewrite
    from maskrcnn.engines.table import REWRITES

    kind = processor.kind()
    task = Task(model=name, mode=mode, size=SIZE)  # type: ignore[arg-type]
    rows = []
    for title in wanted:
        (row,) = [
            r for r in REWRITES
            if f"{r.module.__name__}.{r.method}" == title and any(type(m) is r.module for m in _build(task).modules())
        ]  # fmt: skip
        sides = {}
        for side in ("with", "without"):
            model = _build(task)
            run = (_inference if mode == "inference" else _training)(model, task)
            plain(model)
            chosen = [r for r in REWRITES if mode == "inference" or r.in_training]
            rest = [r for r in chosen if r is not row]
            rewrite(model, rest, kind)
            if side == "with":
                rewrite(model, [row], next(iter(row.kinds)))
            sides[side] = run, timed(model, row.module, row.method)
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for turn in range(repeats + 1):
            for side, (run, seconds) in sides.items():
                seconds()
                start = time.perf_counter()
                run()
                whole = time.perf_counter() - start
                if turn:  # the first warms up
                    found[side].append((seconds(), whole))
        part, whole = (
            {side: statistics.median(pair[i] for pair in pairs) for side, pairs in found.items()}
            for i in (0, 1)
        )
        rows.append(
            {
                "model": name, "mode": mode, "rewrite": title, "in_table_for": sorted(row.kinds),
                "part_with": part["with"], "part_without": part["without"], "gain": part["without"] / part["with"],
                "whole_with": whole["with"], "whole_without": whole["without"],
            }
        )  # fmt: skip
        print(
            f"{name} {mode} {title}: {part['without']:.3f} -> {part['with']:.3f} s ({rows[-1]['gain']:.2f}x)",
            flush=True,
        )
    return rows


def table(rows: list[dict[str, Any]], machine: str, kind: str) -> str:
    lines = [
        f"Rewrites on `{kind}`: {machine}.",
        "",
        "| model | | rewrite | the part without, with (s) | gain | the whole without, with (s) |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['model']} | {r['mode']} | `{r['rewrite']}` | {r['part_without']:.3f}, {r['part_with']:.3f} | "
            f"{r['gain']:.2f} | {r['whole_without']:.2f}, {r['whole_with']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--isa", choices=("AVX2",))
    parser.add_argument("--only", help="cases of one model")
    args = parser.parse_args()
    if args.isa and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)
    from maskrcnn import processor

    rows = [
        row
        for name, mode, wanted in CASES
        if not args.only or args.only == name
        for row in measure(name, mode, wanted, args.repeats)
    ]
    machine, kind = processor.describe().line(), processor.kind()
    (args.out / f"rewrites_{kind}.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    )
    (args.out / f"rewrites_{kind}.md").write_text(table(rows, machine, kind))


if __name__ == "__main__":
    main()
