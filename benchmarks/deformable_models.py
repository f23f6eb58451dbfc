"""InternImage-T and ViT-Adapter-S as whole models on the CPU, beside the same models on the `grid_sample` form.

    python benchmarks/deformable_models.py [--rounds 3] [--threads 2] [--precisions fp32 bf16]

Writes benchmarks/results/deformable_models.json and .md. Same weights, image (800x1216) and code; only the operator
differs: ours, or what the original code falls back to without its CUDA operators (`deformable.py` measures the
operators alone). Offsets get random weights, as a trained model's would be. 100 proposals stand in for detections
(`bench.measure`). Each form is measured with the small pages of a plain PyTorch process and with the large ones that
`import maskrcnn` sets; each of these four has a process of its own, and the processes take turns. Before that, both
forms have to give the same feature maps. In bf16 the other form samples in float32, as the original code does in half
precision (PyTorch's `grid_sample` gives NaN for bf16 on this CPU).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from deformable import attention_by_grid_sample, dcnv3_by_grid_sample
from torch import Tensor

from maskrcnn import bench
from maskrcnn.backbones import internimage, vit_adapter
from maskrcnn.engines.prepare import prepare
from maskrcnn.models.mask_rcnn import MaskRCNN

RESULTS = Path(__file__).parent / "results"
call: Callable[[], object]  # of a measuring process
PAGES = ("small", "large")
MODELS = ("mask_rcnn_internimage_t_fpn_1x_coco", "mask_rcnn_deit_adapter_small_fpn_3x_coco")


def dcnv3(input: Tensor, offset: Tensor, mask: Tensor, *, groups: int, **_: Any) -> Tensor:
    return dcnv3_by_grid_sample(input.float(), offset.float(), mask.float(), groups).to(input.dtype)


def attention(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    return attention_by_grid_sample(value.float(), shapes, locations, weights).to(value.dtype)


@contextmanager
def on_grid_sample() -> Iterator[None]:
    ours = internimage.dcnv3, vit_adapter.ms_deform_attn
    internimage.dcnv3, vit_adapter.ms_deform_attn = dcnv3, attention
    try:
        yield
    finally:
        internimage.dcnv3, vit_adapter.ms_deform_attn = ours


def randomize_offsets(model: torch.nn.Module) -> None:
    """They start at zero, where every sample lies on a pixel."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".offset." in name or "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            parameter.data.normal_(0, 0.05, generator=generator)


def build(name: str, precision: str, threads: int) -> tuple[MaskRCNN, bench.Task]:
    torch.set_num_threads(threads)
    task = bench.Task(model=name, precision=precision, threads=threads)
    model = bench.build_task(task)
    randomize_offsets(model)
    return model, task


class Process:
    """One form of one model in a process of its own, where the other's freed memory does not help or hinder it."""

    def __init__(self, form: str, pages: str, *task: Any) -> None:
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(pages == "large"))
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=start, initargs=(form, *task))
        self.pool.submit(int).result()  # started, with this environment

    def seconds(self) -> float:
        return self.pool.submit(seconds).result()


def start(form: str, *task: Any) -> None:
    global call
    run = bench.inference_call(*build(*task))

    def on_the_other() -> None:
        with on_grid_sample():
            run()

    call = on_the_other if form == "grid_sample" else run


def seconds() -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def difference(name: str, precision: str, threads: int) -> float:
    """Between the two forms' feature maps, of their spread: in float32, where both compute the same, the largest; in
    bf16, which rounds each differently, the usual (rms)."""
    model, task = build(name, precision, threads)
    prepare(model, "fp32" if precision == "fp32" else "bf16")
    pixels = bench._batch(model, task).pixels
    with torch.inference_mode():
        mine = model.backbone(pixels)
        with on_grid_sample():
            other = model.backbone(pixels)
    off = [(a.float() - b.float()).abs() / b.float().std() for a, b in zip(mine, other, strict=True)]
    return max(float(d.max() if precision == "fp32" else d.square().mean().sqrt()) for d in off)


def measure(*task: Any, rounds: int) -> dict[str, Any]:
    name, precision, _ = task
    found = difference(*task)
    assert found < {"fp32": 1e-3, "bf16": 0.1}[precision], found
    processes = {kind: Process(*kind, *task) for kind in itertools.product(("grid_sample", "ours"), PAGES)}
    taken: dict[tuple[str, str], list[float]] = {kind: [] for kind in processes}
    for turn in range(2 + rounds):
        for kind, process in processes.items():
            time_taken = process.seconds()
            if turn >= 2:  # before, memory comes in
                taken[kind].append(time_taken)
    for process in processes.values():
        process.pool.shutdown()
    median = {kind: statistics.median(values) for kind, values in taken.items()}

    def ratio(theirs: str, ours: str) -> float:
        return round(median["grid_sample", theirs] / median["ours", ours], 2)

    return {
        "model": name,
        "precision": precision,
        "seconds": {f"{form}, {pages} pages": round(value, 3) for (form, pages), value in median.items()},
        "ratio": {pages: ratio(pages, pages) for pages in PAGES},
        "ratio_as_people_run": ratio("small", "large"),  # the original in plain PyTorch, and us as installed
        "features_differ_by": f"{found:.1e} of their spread",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    args = parser.parse_args()
    rows = []
    for name, precision in itertools.product(MODELS, args.precisions):
        rows.append(measure(name, precision, args.threads, rounds=args.rounds))
        print(json.dumps(rows[-1]), flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads, "rows": rows}
    stem = RESULTS / "deformable_models"
    stem.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        f"# Whole models on our operators and on `grid_sample`, CPU {platform.machine()}, {args.threads} threads",
        "",
        f"Seconds an image of 800x1216, torch {torch.__version__}, medians of {args.rounds} rounds by turns, each "
        "column in a process of its own. `import maskrcnn` sets large pages; a plain PyTorch process has small ones.",
        "",
        "| model | precision | grid_sample, small pages | ours | ratio | grid_sample, large pages | ours | ratio "
        "| plain grid_sample / ours as installed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [
            f"{row['seconds'][f'grid_sample, {pages} pages']:.2f} | {row['seconds'][f'ours, {pages} pages']:.2f} "
            f"| {row['ratio'][pages]:.2f}"
            for pages in PAGES
        ]
        first = f"| {row['model']} | {row['precision']} "
        lines.append(f"{first}| {' | '.join(numbers)} | {row['ratio_as_people_run']:.2f} |")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
