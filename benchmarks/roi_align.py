"""RoIAlign on the CPU, paired with torchvision's operator: time, CPU time and peak memory.

    python benchmarks/roi_align.py            # writes benchmarks/results/roi_align.json and .md
    python benchmarks/roi_align.py --device cuda

1,000 boxes with sides of 20 to 130 pixels, as FPN sends to P2, on a map of 256 channels and 200x272 cells at
a quarter of the image's resolution. Each operator gets the layout that it is at home in, ours channels-last
(as the models here run) and torchvision's NCHW; two pairs of rows give both the same, which costs one a copy.
The two run by turns of two calls, of which the second is counted: the first also hands back to the system what the
other one freed. A row gives the median of each and the ratio of the medians. Memory is the most that one
call holds at a time in tensors beyond its inputs, as the allocator reports it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from maskrcnn.ops import roi_align

H, W, C, R = 200, 272, 256, 1000
WARM_UP = 2.0  # seconds of calls by turns: a virtual machine may have to fetch the memory that a process is first given
CALLS = 2  # of a turn; the first is not counted
RESULTS = Path(__file__).parent / "results"
OPERATORS = {"ours": roi_align, "torchvision": torchvision.ops.roi_align}


def make_boxes(device: str) -> Tensor:
    g = torch.Generator().manual_seed(0)
    side = 20 * (130 / 20) ** torch.rand(R, generator=g)
    stretch = torch.exp(0.6 * torch.rand(R, generator=g) - 0.3)
    size = torch.stack([side * stretch, side / stretch], dim=1)
    image = torch.tensor([W * 4.0, H * 4.0])
    centre = torch.rand(R, 2, generator=g) * image
    corners = torch.cat([(centre - size / 2).clamp(min=0), torch.minimum(centre + size / 2, image)], dim=1)
    return torch.cat([torch.zeros(R, 1), corners], dim=1).to(device)


def make_call(
    name: str, size: int, ratio: int, dtype: torch.dtype, backward: bool, channels_last: bool, device: str
):
    """One call to be timed: forward, or forward and backward."""

    def in_layout(make, n: int, h: int, w: int) -> Tensor:
        """Made in its layout, so that no copy raises the peak of memory beforehand."""
        options = {"dtype": dtype, "device": device}
        if channels_last:
            return make(n, h, w, C, **options).permute(0, 3, 1, 2)
        return make(n, C, h, w, **options)

    torch.manual_seed(0)
    x = in_layout(torch.randn, 1, H, W)
    grad = in_layout(torch.ones, R if backward else 0, size, size)
    boxes = make_boxes(device)
    if name == "torchvision":
        boxes = boxes.to(dtype)
    x.requires_grad_(backward)
    operator = OPERATORS[name]

    def call() -> None:
        out = operator(x, boxes, size, 0.25, ratio, True)
        if backward:
            torch.autograd.grad(out, x, grad)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def measure(calls: dict[str, tuple], runs: int) -> dict[str, dict[str, float]]:
    made = {name: make_call(*spec) for name, spec in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP:
        for call in made.values():
            call()
    for _ in range(runs):
        for name, call in made.items():
            call()
            for _ in range(CALLS - 1):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: {"seconds": statistics.median(s), "best": min(s)} for name, s in seconds.items()}


def peak_mib(spec: tuple) -> float:
    """The most memory that one call holds at a time in tensors beyond its inputs, in MiB."""
    call = make_call(*spec)
    call()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = args.device

    cases = [
        (size, ratio, "fp32", backward, "own")
        for size in (7, 14)
        for ratio in (2, 0)
        for backward in (False, True)
    ]
    cases += [
        (7, 0, "fp32", backward, layout) for layout in ("channels-last", "NCHW") for backward in (False, True)
    ]
    cases += [(size, 0, "bf16", backward, "own") for size in (7, 14) for backward in (False, True)]
    rows = []
    for size, ratio, precision, backward, layout in cases:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        ours = ("ours", size, ratio, dtype, backward, layout != "NCHW", device)
        # torchvision's CPU operator has no bf16: its fp32 is the pair.
        theirs = (
            "torchvision",
            size,
            ratio,
            torch.float32 if device == "cpu" else dtype,
            backward,
            layout == "channels-last",
            device,
        )
        result = measure({"ours": ours, "torchvision": theirs}, args.runs)
        row = {
            "output": size, "sampling_ratio": ratio, "precision": precision,
            "pass": "forward + backward" if backward else "forward", "layout": layout, **result,
            "ratio": result["torchvision"]["seconds"] / result["ours"]["seconds"],
            "ratio_of_best": result["torchvision"]["best"] / result["ours"]["best"],
        }  # fmt: skip
        if device == "cpu":
            row["peak_mib"] = {
                name: peak_mib(spec) for name, spec in (("ours", ours), ("torchvision", theirs))
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
        write(rows, args.threads, device)


def write(rows: list[dict], threads: int, device: str) -> None:
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}, {threads} threads"
    )
    stem = RESULTS / ("roi_align" if device == "cpu" else "roi_align_cuda")
    about = {"device": name, "torch": torch.__version__, "torchvision": torchvision.__version__, "rows": rows}
    stem.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        f"# RoIAlign against torchvision, {name}",
        "",
        f"{R} boxes, {C} channels, map {H}x{W}, torch {torch.__version__}, torchvision {torchvision.__version__}. "
        "Times are medians of runs by turns; `best` is the ratio of the fastest runs, which other work on the "
        "machine disturbs least. Peak: the most that one call holds in tensors beyond its inputs, MiB.",
        "",
        "| output | samples | precision | pass | ours ms | torchvision ms | ratio | best | peak ours | peak tv |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        peak = r.get("peak_mib", {"ours": math.nan, "torchvision": math.nan})
        lines.append(
            f"| {r['output']}x{r['output']} | {r['sampling_ratio'] or 'adaptive'} | {r['precision']} "
            f"| {r['pass']}{'' if r['layout'] == 'own' else ', both ' + r['layout']} "
            f"| {r['ours']['seconds'] * 1e3:.1f} | {r['torchvision']['seconds'] * 1e3:.1f} | {r['ratio']:.1f} "
            f"| {r['ratio_of_best']:.1f} | {peak['ours']:.0f} | {peak['torchvision']:.0f} |"
        )
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
