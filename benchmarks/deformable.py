"""DCNv3 and multi-scale deformable attention on the CPU, paired with the `grid_sample` form that the original
code falls back to without its CUDA operators: time and peak memory.

    python benchmarks/deformable.py     # writes benchmarks/results/deformable.json and .md
    python benchmarks/deformable.py --device cuda --precisions fp32 fp16 bf16
    THP_MEM_ALLOC_ENABLE=0 python benchmarks/deformable.py     # ..._small_pages.json and .md

`import maskrcnn` has PyTorch take pages of 2 MiB for large tensors, which helps `grid_sample`'s form with its large
temporary tensors more than ours; the last command measures both as a plain PyTorch process runs.

The sizes are those of InternImage-T's four stages and of ViT-Adapter-S's injector and extractor for an image of
800x1216. Each form has a process of its own, where it finds no memory that the other freed and has none to hand back
for it (in one process, that alone takes ours 2 to 3 ms a call at the smallest size, and `grid_sample` up to twice its
time). The processes take turns of a round: all sizes one after another, each four times, as a network's layers
follow each other. A row gives the median of each form over all rounds and the ratio of the medians. Memory is the
most that one call holds at a time in tensors beyond its inputs, as the allocator reports it. On a GPU a row also gives
the rate at which the bytes that must move at least (inputs read, outputs written, once each) do move.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops import bilinear, dcnv3, ms_deform_attn

RESULTS = Path(__file__).parent / "results"
CALLS = 4  # of a size in a round; a network has at least so many layers of it
WARM_UP = 4  # rounds: a virtual machine may have to fetch the memory that a process is first given
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMS = ("ours", "grid_sample")
Maps = list[tuple[int, int]]
form: Form  # of a measuring process


def dcnv3_by_grid_sample(input: Tensor, offset: Tensor, mask: Tensor, groups: int) -> Tensor:
    """A 3x3 DCNv3 of stride 1, as whole tensors: pad, normalise all places, sample, weigh, add."""
    N, H, W, C = input.shape
    K = 9
    padded = F.pad(input, (0, 0, 1, 1, 1, 1))
    size = torch.tensor([W + 2.0, H + 2.0], device=input.device)
    y, x = torch.meshgrid(torch.arange(H) + 1.5, torch.arange(W) + 1.5, indexing="ij")
    dx, dy = torch.meshgrid(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0), indexing="ij")
    centre = torch.stack((x, y), -1).view(1, H, W, 1, 2).to(size)
    points = torch.stack((dx, dy), -1).view(1, 1, 1, K, 2).repeat(1, 1, 1, groups, 1).to(size)
    places = (centre + points + offset.view(N, H, W, groups * K, 2)) / size
    grid = (2 * places - 1).to(input.dtype).view(N, H * W, groups, K, 2).transpose(1, 2).flatten(0, 1)
    maps = padded.flatten(1, 2).transpose(1, 2).reshape(N * groups, C // groups, H + 2, W + 2)
    samples = F.grid_sample(maps, grid, align_corners=False)
    weight = mask.view(N, H * W, groups, K).transpose(1, 2).reshape(N * groups, 1, H * W, K)
    return (samples * weight).sum(-1).view(N, C, H * W).transpose(1, 2).reshape(N, H, W, C)


def attention_by_grid_sample(value: Tensor, shapes: Maps, locations: Tensor, weights: Tensor) -> Tensor:
    N, _, M, D = value.shape
    Q = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(N * M, D, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    weight = weights.transpose(1, 2).reshape(N * M, 1, Q, -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * weight).sum(-1)
    return out.view(N, M * D, Q).transpose(1, 2).contiguous()


def dcnv3_case(H: int, W: int, C: int) -> tuple[list[Tensor], Callable, Callable]:
    groups = C // 16
    tensors = [torch.randn(1, H, W, C), torch.randn(1, H, W, groups * 18)]
    tensors.append(torch.randn(1, H, W, groups, 9).softmax(-1).flatten(3))

    def ours(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return dcnv3(
            input,
            offset,
            mask,
            kernel_size=3,
            stride=1,
            padding=1,
            dilation=1,
            groups=groups,
            offset_scale=1.0,
        )

    return tensors, ours, lambda i, o, m: dcnv3_by_grid_sample(i, o, m, groups)


def attention_case(queries: Maps, maps: Maps) -> tuple[list[Tensor], Callable, Callable]:
    """6 heads of 64 channels, 4 points a map around each query's own place."""
    M, D, P, L = 6, 64, 4, len(maps)
    centres = [
        torch.stack(
            torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1
        )
        for h, w in queries
    ]
    centre = torch.cat([c.reshape(-1, 2) for c in centres])
    Q = len(centre)
    cells = torch.tensor(maps).flip(1)
    places = centre.view(1, Q, 1, 1, 1, 2) + 2 * torch.randn(1, Q, M, L, P, 2) / cells[:, None]
    value = torch.randn(1, sum(h * w for h, w in maps), M, D)
    weights = torch.randn(1, Q, M, L * P).softmax(-1).view(1, Q, M, L, P)
    return (
        [value, places, weights],
        lambda v, p, w: ms_deform_attn(v, maps, p, w),
        lambda v, p, w: attention_by_grid_sample(v, maps, p, w),
    )


LEVELS: Maps = [(100, 152), (50, 76), (25, 38)]
CASES: dict[str, Callable] = {
    "DCNv3, InternImage-T stage 1": lambda: dcnv3_case(200, 304, 64),
    "DCNv3, InternImage-T stage 2": lambda: dcnv3_case(100, 152, 128),
    "DCNv3, InternImage-T stage 3": lambda: dcnv3_case(50, 76, 256),
    "DCNv3, InternImage-T stage 4": lambda: dcnv3_case(25, 38, 512),
    "attention, ViT-Adapter-S injector": lambda: attention_case([(50, 76)], LEVELS),
    "attention, ViT-Adapter-S extractor": lambda: attention_case(LEVELS, [(50, 76)]),
}


def call(op: Callable, tensors: list[Tensor], grad: Tensor | None) -> None:
    out = op(*tensors)
    if grad is not None:
        torch.autograd.grad(out, tensors, grad)
    if out.is_cuda:
        torch.cuda.synchronize()


class Form:
    """One of the two forms with the tensors of all sizes, in the process that it is made in."""

    def __init__(self, name: str, device: str, precision: str, backward: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.calls: dict[str, tuple[Callable, list[Tensor], Tensor | None]] = {}
        for case, make in CASES.items():
            torch.manual_seed(0)
            tensors, *ops = make()
            op = ops[FORMS.index(name)]
            tensors = [t.to(device, PRECISIONS[precision]).requires_grad_(backward) for t in tensors]
            grad = torch.randn_like(op(*tensors)) if backward else None
            self.calls[case] = op, tensors, grad

    def round(self) -> dict[str, list[float]]:
        """The seconds of each call."""
        return {case: [seconds(*spec) for _ in range(CALLS)] for case, spec in self.calls.items()}

    def memory(self) -> dict[str, dict[str, float]]:
        """What each call holds at most, and the bytes of its inputs and outputs."""
        return {
            case: {
                "peak_mib": peak_mib(op, tensors, grad),
                "bytes": sum(t.nbytes for t in (*tensors, op(*tensors))),
            }
            for case, (op, tensors, grad) in self.calls.items()
        }

    def outputs(self) -> dict[str, Tensor]:
        return {case: op(*tensors).detach().float().cpu() for case, (op, tensors, _) in self.calls.items()}


def start(*about: Any) -> None:
    global form
    form = Form(*about)


def ask(what: str) -> Any:
    return getattr(form, what)()


def seconds(op: Callable, tensors: list[Tensor], grad: Tensor | None) -> float:
    begin = time.perf_counter()
    call(op, tensors, grad)
    return time.perf_counter() - begin


def measure(rounds: int, *about: Any) -> dict[str, dict]:
    """Of each size, what each form takes."""
    context = get_context("spawn")
    forms = {
        name: ProcessPoolExecutor(1, context, initializer=start, initargs=(name, *about)) for name in FORMS
    }

    def answers(what: str) -> dict[str, Any]:
        return {name: process.submit(ask, what).result() for name, process in forms.items()}

    _, precision, *_ = about
    ours, theirs = answers("outputs").values()
    for case in CASES:
        difference = float((ours[case] - theirs[case]).abs().max())
        assert difference < {"fp32": 1e-3}.get(precision, 1.0), (case, difference)
    del ours, theirs
    taken = [answers("round") for _ in range(WARM_UP + rounds)][WARM_UP:]
    memory = answers("memory")
    for process in forms.values():
        process.shutdown()
    rows = {}
    for case in CASES:
        rows[case] = {}
        for name in FORMS:
            times = [t for one in taken for t in one[name][case]]
            rows[case][name] = {
                "seconds": statistics.median(times),
                "best": min(times),
                **memory[name][case],
            }
    return rows


def peak_mib(op: Callable, tensors: list[Tensor], grad: Tensor | None) -> float:
    """The most memory that one call holds at a time in tensors beyond its inputs, in MiB.

    With what it would keep for the next call.
    """
    bilinear._scratch.clear()
    if tensors[0].is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call(op, tensors, grad)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call(op, tensors, grad)
    results: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=["fp32"])
    args = parser.parse_args()
    rows = []
    for precision, backward in itertools.product(args.precisions, (False, True)):
        measured = measure(args.rounds, args.device, precision, backward, args.threads)
        for case, forms in measured.items():
            row: dict = {"case": case, "precision": precision}
            row["pass"] = "forward + backward" if backward else "forward"
            row |= forms
            for what, key in (("ratio", "seconds"), ("ratio_of_best", "best"), ("ratio_of_peak", "peak_mib")):
                row[what] = row["grid_sample"][key] / row["ours"][key]
            if args.device == "cuda":
                passes = 3 if backward else 1  # backward: in and out
                row["gb_per_s"] = passes * forms["ours"]["bytes"] / forms["ours"]["seconds"] / 1e9
            rows.append(row)
            print(json.dumps(row), flush=True)
    rows.sort(key=lambda row: list(CASES).index(row["case"]))
    write(rows, args)


def write(rows: list[dict], args: argparse.Namespace) -> None:
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU {platform.machine()}, {args.threads} threads"
    about = {"device": device, "torch": torch.__version__, "rounds": args.rounds}
    small = os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / ("deformable_cuda" if cuda else "deformable" + "_small_pages" * small)
    stem.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    lines = [
        f"# DCNv3 and deformable attention against `grid_sample`, {device}",
        "",
        f"An image of 800x1216, {'small' if small else 'large'} pages for both, torch {torch.__version__}, "
        f"each form in a process of its own, medians of {args.rounds} rounds by turns; `best` is the ratio "
        "of the fastest calls, which other work on the machine disturbs least. Peak: the most that one call "
        "holds in tensors beyond its inputs, MiB. `grid_sample` is the form that the original code falls back to "
        "without its CUDA operators.",
        "",
        "| operator | precision | pass | ours ms | grid_sample ms | ratio | best | peak ours | peak grid_sample |"
        + " GB/s |" * cuda,
        "|---|---|---|---|---|---|---|---|---|" + "---|" * cuda,
    ]
    for r in rows:
        ours, theirs = r["ours"], r["grid_sample"]
        lines.append(
            f"| {r['case']} | {r['precision']} | {r['pass']} | {ours['seconds'] * 1e3:.1f} "
            f"| {theirs['seconds'] * 1e3:.1f} | {r['ratio']:.1f} | {r['ratio_of_best']:.1f} "
            f"| {ours['peak_mib']:.0f} | {theirs['peak_mib']:.0f} |"
            + (f" {r['gb_per_s']:.0f} |" if cuda else "")
        )
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
