"""InternImage-T and ViT-Adapter-S as whole models on the CPU, beside the same models on the `grid_sample` form.

    python benchmarks/deformable_models.py [--rounds 3] [--threads 2] [--precisions fp32 bf16]

Same weights, image (800x1216) and code; only the operator differs: ours, or what the original code falls back to
without its CUDA operators (`deformable.py` measures the operators alone). Offsets get random weights, as a trained
model's would be. 100 proposals stand in for detections (`maskrcnn.bench`). The two take turns; before that, they
have to give the same feature maps. In bf16 the other form samples in float32, as the original code does in half
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deformable import attention_by_grid_sample, dcnv3_by_grid_sample
from torch import Tensor

from maskrcnn import bench
from maskrcnn.backbones import internimage, vit_adapter

RESULTS = Path(__file__).parent / "results"
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


def measure(name: str, precision: str, rounds: int, threads: int) -> dict[str, Any]:
    task = bench.Task(model=name, precision=precision, threads=threads)
    model = bench._build(task)
    randomize_offsets(model)
    call = bench._inference(model, task)

    def theirs() -> None:
        with on_grid_sample():
            call()

    pixels = bench._batch(model, task).pixels
    with torch.inference_mode():
        mine = model.backbone(pixels)
        with on_grid_sample():
            other = model.backbone(pixels)
    # The largest in float32, where both compute the same; in bf16, which rounds each differently, the usual.
    off = [(a.float() - b.float()).abs() / b.float().std() for a, b in zip(mine, other, strict=True)]
    difference = max(float(d.max() if precision == "fp32" else d.square().mean().sqrt()) for d in off)
    assert difference < {"fp32": 1e-3, "bf16": 0.1}[precision], difference
    calls: dict[str, Callable[[], object]] = {"grid_sample": theirs, "ours": call}
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, run in calls.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[key].append(time.perf_counter() - start)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "model": name,
        "precision": precision,
        "seconds": {key: round(value, 3) for key, value in median.items()},
        "ratio": round(median["grid_sample"] / median["ours"], 2),
        "features_differ_by": f"{difference:.1e} of their spread",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, precision in itertools.product(MODELS, args.precisions):
        rows.append(measure(name, precision, args.rounds, args.threads))
        print(json.dumps(rows[-1]), flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": args.threads, "rows": rows}
    small = os.environ["THP_MEM_ALLOC_ENABLE"] == "0"  # see deformable.py
    (RESULTS / f"deformable_models{'_small_pages' * small}.json").write_text(
        json.dumps(about, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
