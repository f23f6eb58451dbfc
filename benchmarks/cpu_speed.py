"""Mask R-CNN R50-FPN on the CPU: ours against torchvision's, same weights, same photograph, same threads.

    python benchmarks/cpu_speed.py [--only PART ...] [--compile] [--rounds N] [--out DIR]

Every part is paired: the models take turns in one process, so a busy machine slows all of them; the table has
medians of seconds, and medians of each round's ratio. The photograph is 480x640, shown to the network at 800x1066;
both models find 100 objects.

inference  picture in (uint8 array), full-size masks out. torchvision's as people use it: float32, NCHW.
training   one step of batch 1: resize, forward, backward, SGD with momentum; 8 objects.
stages     the same two, stage by stage (`stage_clock.py`).
memory     peak resident memory of each in a process of its own (Linux), less what it had after its imports.
ceilings   what convolutions and matrix products reach on this machine, now.

Parts not measured in this run keep what `DIR/cpu_speed.json` has of them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stage_clock import STAGES, StageClock
from torch import Tensor, nn
from torchvision_twin import make_twins, objects, photograph

from maskrcnn.models import mask_rcnn
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.image_io import resize_size

RESULTS = Path(__file__).parent / "results"
IMAGE = (480, 640)
NETWORK = resize_size(*IMAGE, 800, 1333)
TORCHVISION = "torchvision fp32"
TARGETS = {
    "inference": {"ours fp32": 2.0, "ours bf16": 3.5},
    "training": {"ours fp32": 1.4},
}


# ---------------------------------------------------------------------------------------------------
# What is timed


def detect_theirs(model: nn.Module, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Full-size masks (N, H, W) bool and boxes (N, 4), as torchvision's tutorials get them."""
    with torch.inference_mode():
        found = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    return (found["masks"][:, 0] >= 0.5).numpy(), found["boxes"]


def detect_ours(model: MaskRCNN, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    found = model.predict(image)
    return np.asarray(found.masks), found.boxes


def inference_models(with_compile: bool) -> dict[str, Callable[[], tuple[np.ndarray, Tensor]]]:
    ours, theirs = make_twins()
    theirs.eval()
    image = photograph(*IMAGE)
    calls: dict[str, Callable[[], tuple[np.ndarray, Tensor]]] = {
        TORCHVISION: lambda: detect_theirs(theirs, image)
    }
    for precision in ("fp32", "bf16"):
        for compiled in (False, True) if with_compile else (False,):
            model = copy.deepcopy(ours).prepare(precision)
            if compiled:
                model.backbone.compile()
                model.rpn.head.compile(dynamic=True)
            name = f"ours {precision}" + (", compiled" if compiled else "")
            calls[name] = lambda model=model: detect_ours(model, image)
    return calls


class Step:
    """One training step of a model on one picture of 8 objects."""

    def __init__(self, model: nn.Module, autocast: bool = False) -> None:
        self.model = model.train()
        self.image = photograph(*IMAGE)
        self.autocast = autocast
        scale = (NETWORK[1] / IMAGE[1], NETWORK[0] / IMAGE[0])
        self.ours, self.theirs = objects(*IMAGE, scale)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # A rate too small to matter: every step is the same work.
        self.optimizer = torch.optim.SGD(parameters, lr=1e-7, momentum=0.9, weight_decay=1e-4)

    def losses(self) -> dict[str, Tensor]:
        if isinstance(self.model, MaskRCNN):
            pixels = torch.from_numpy(mask_rcnn.resize_image(self.image, NETWORK)).permute(2, 0, 1)
            batch = self.model.preprocess([pixels])
            with torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext():
                return self.model(batch, [self.ours])
        pixels = torch.from_numpy(self.image).permute(2, 0, 1).float() / 255
        return self.model([pixels], [self.theirs])

    def __call__(self, clock: StageClock | None = None) -> float:
        def stage(name: str) -> AbstractContextManager[None]:
            return nullcontext() if clock is None else clock.stage(name)

        self.optimizer.zero_grad()
        loss = torch.stack([value.float() for value in self.losses().values()]).sum()
        if clock is None:
            loss.backward()
        else:
            clock.backward(loss)
        with stage("optimizer"):
            self.optimizer.step()
        return loss.item()


def training_steps() -> dict[str, Step]:
    ours, theirs = make_twins()
    ours = ours.to(memory_format=torch.channels_last)
    return {
        TORCHVISION: Step(theirs),
        "ours fp32": Step(ours),
        "ours bf16": Step(copy.deepcopy(ours), autocast=True),
    }


# ---------------------------------------------------------------------------------------------------
# Parts


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int, part: str) -> dict[str, Any]:
    """Seconds of each call in each round, medians, and each round's ratio to torchvision's."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[TORCHVISION], times)]
        target = TARGETS[part].get(name)
        rows[name] = {
            "median_s": round(statistics.median(times), 3),
            "best_s": round(min(times), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(r, 2) for r in ratios],
            **({"target": target} if target else {}),
        }
        print(f"  {name:22s} {rows[name]['median_s']:7.3f} s   {rows[name]['ratio']:5.2f}x   target {target}")
    return {"rounds": rounds, "rows": rows}


def measure_inference(args: argparse.Namespace) -> dict[str, Any]:
    calls = inference_models(args.compile)
    found = {name: call() for name, call in calls.items()}  # the warm-up
    counts = {name: len(masks) for name, (masks, _) in found.items()}
    if set(counts.values()) != {100}:
        sys.exit(f"expected 100 objects from every model, got {counts}")
    same = sum_of_matches(found["ours fp32"][1], found[TORCHVISION][1])
    return {
        "detections": 100,
        "boxes_shared_by_ours_fp32_and_torchvision": same,
        **take_turns(calls, args.rounds, "inference"),
    }


def sum_of_matches(a: Tensor, b: Tensor) -> int:
    """How many boxes of `a` have one of `b` within 2 pixels."""
    return int(((a[:, None] - b[None]).abs().amax(2) < 2).any(1).sum())


def measure_training(args: argparse.Namespace) -> dict[str, Any]:
    steps = training_steps()
    losses = {name: step() for name, step in steps.items()}
    if not all(np.isfinite(v) for v in losses.values()):
        sys.exit(f"expected finite losses, got {losses}")
    return take_turns(steps, args.rounds, "training")


def measure_stages(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, dict[str, Any]] = {"inference": {}, "training": {}}
    ours, theirs = make_twins()
    image = photograph(*IMAGE)
    theirs.eval()
    models: dict[str, tuple[nn.Module, Callable[..., Any]]] = {TORCHVISION: (theirs, detect_theirs)}
    for precision in ("fp32", "bf16"):
        models[f"ours {precision}"] = (copy.deepcopy(ours).prepare(precision), detect_ours)
    clocks = {name: StageClock() for name in models}
    for i in range(args.rounds + 1):
        for name, (model, detect) in models.items():
            with clocks[name].watch(model), clocks[name].run():
                if isinstance(model, MaskRCNN):
                    found = model.predict(image)
                    with clocks[name].stage("paste"):
                        np.asarray(found.masks)
                else:
                    detect(model, image)
            if i == 0:
                clocks[name].runs.clear()  # the warm-up
    result["inference"] = {name: rounded(clock.medians()) for name, clock in clocks.items()}
    del models, theirs, ours
    steps = training_steps()
    clocks = {name: StageClock() for name in steps}
    for i in range(args.rounds + 1):
        for name, step in steps.items():
            with clocks[name].watch(step.model), clocks[name].run():
                step(clocks[name])
            if i == 0:
                clocks[name].runs.clear()
    result["training"] = {name: rounded(clock.medians()) for name, clock in clocks.items()}
    for kind, columns in result.items():
        print("\n".join(["", kind, *stage_table(columns)]))
    return result


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind in ("inference", "training"):
        for name in (TORCHVISION, "ours fp32", "ours bf16"):
            command = [sys.executable, __file__, "--child", kind, name, "--threads", str(args.threads)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result.setdefault(kind, {})[name] = json.loads(output.splitlines()[-1])
            print(f"  {kind:10s} {name:18s} {result[kind][name]}")
    return result


def peak_mib() -> float:
    """The most resident memory since `forget_peak` (Linux's VmHWM)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # pyright: ignore


def forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def child(kind: str, name: str) -> None:
    """Two runs of one model in this process; prints its memory."""
    imported = peak_mib()
    ours, theirs = make_twins()
    precision = "bf16" if name.endswith("bf16") else "fp32"
    if name == TORCHVISION:
        del ours
        image = photograph(*IMAGE)
        theirs.eval()
        call = Step(theirs) if kind == "training" else lambda: detect_theirs(theirs, image)
    else:
        del theirs
        if kind == "training":
            ours.to(memory_format=torch.channels_last)
            call = Step(ours, autocast=precision == "bf16")
        else:
            image = photograph(*IMAGE)
            ours.prepare(precision)
            call = lambda: detect_ours(ours, image)  # noqa: E731
    forget_peak()  # making twins holds both models
    built = peak_mib()
    for _ in range(2):
        call()
    peak = peak_mib()
    print(
        json.dumps(
            {"peak_mib": round(peak), "above_imports_mib": round(peak - imported), "built_mib": round(built)}
        )
    )


def measure_ceilings(args: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s (a multiply-add is two), best of several."""
    x, weight = torch.randn(1, 256, 200, 272), torch.randn(256, 256, 3, 3)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    last = {"memory_format": torch.channels_last}
    half = {"dtype": torch.bfloat16}
    a16, b16 = a.to(**half), b.to(**half)
    conv = 2 * x[0].numel() * 256 * 9
    cases: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "conv 3x3 256->256 on 200x272, fp32 NCHW": (conv, _conv(x, weight)),
        "conv, fp32 NHWC": (conv, _conv(x.to(**last), weight.to(**last))),
        "conv, bf16 NHWC": (conv, _conv(x.to(**last, **half), weight.to(**last, **half))),
        "matmul 2048^3, fp32": (2 * 2048**3, lambda: a @ b),
        "matmul, bf16": (2 * 2048**3, lambda: a16 @ b16),
    }
    result = {}
    for name, (flops, call) in cases.items():
        times = []
        with torch.inference_mode():
            for _ in range(args.rounds + 2):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
        result[name] = round(flops / min(times) / 1e9)
        print(f"  {name:42s} {result[name]} GFLOP/s")
    return result


def _conv(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, padding=1)


PARTS = {
    "ceilings": measure_ceilings,
    "inference": measure_inference,
    "training": measure_training,
    "stages": measure_stages,
    "memory": measure_memory,
}

# ---------------------------------------------------------------------------------------------------
# Tables


def machine(threads: int) -> dict[str, Any]:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wide = ", ".join(
        name
        for flag, name in (("avx512f", "AVX-512"), ("avx512_bf16", "bf16"), ("amx_bf16", "AMX"))
        if flag in flags
    )
    return {
        "machine": f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}"
        + (f" ({wide})" if wide else ""),
        "threads": threads,
        "torch": version("torch"),
        "torchvision": version("torchvision"),
    }


def stage_table(columns: dict[str, dict[str, float]]) -> list[str]:
    names = list(columns)
    lines = ["| seconds | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for stage in STAGES:
        if any(stage in column for column in columns.values()):
            cells = [f"{column[stage]:.3f}" if stage in column else "" for column in columns.values()]
            lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    sums = [f"{sum(column.values()):.3f}" for column in columns.values()]
    return [*lines, "| sum | " + " | ".join(sums) + " |"]


def tables(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        "# Speed on the CPU: Mask R-CNN R50-FPN, ours and torchvision's",
        "",
        f"{where['machine']}, {where['threads']} threads, torch {where['torch']}, torchvision {where['torchvision']}. "
        "Made by `benchmarks/cpu_speed.py`, which says what is measured and how; "
        f"image {IMAGE[0]}x{IMAGE[1]}, network input {NETWORK[0]}x{NETWORK[1]}, 100 detections.",
    ]
    for part, title in (("inference", "Inference, one image"), ("training", "One training step, batch 1")):
        if part in result:
            lines += ["", f"## {title}", "", "| | seconds | times as fast | goal |", "|---|---:|---:|---:|"]
            for name, row in result[part]["rows"].items():
                goal = f"{row['target']}" if "target" in row else ""
                lines.append(f"| {name} | {row['median_s']:.2f} | {row['ratio']:.2f} | {goal} |")
            lines += ["", f"Medians of {result[part]['rounds']} rounds in turns."]
    for kind, columns in result.get("stages", {}).items():
        lines += ["", f"## Stage by stage: {kind}", "", *stage_table(columns)]
    if "memory" in result:
        lines += ["", "## Peak resident memory, MiB above the imports", ""]
        names = list(result["memory"]["inference"])
        lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for kind, row in result["memory"].items():
            lines.append(f"| {kind} | " + " | ".join(str(row[n]["above_imports_mib"]) for n in names) + " |")
    if "ceilings" in result:
        lines += ["", "## What the machine can do", "", "| | GFLOP/s |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in result["ceilings"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="the parts to measure (default: all)")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (takes minutes)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(*args.child)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "cpu_speed.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    result["machine"] = machine(args.threads)
    for part in args.only or PARTS:
        print(part, flush=True)
        result[part] = PARTS[part](args)
        file.write_text(json.dumps(result, indent=1) + "\n")
        file.with_suffix(".md").write_text(tables(result))


if __name__ == "__main__":
    main()
