"""Mask R-CNN R50-FPN on a CUDA GPU: ours against torchvision's with the same weights, and RoIAlign alone.

    python benchmarks/gpu_speed.py [--only roi_align|models] [--batches 1 2 4 8 16 32] [--seconds S] [--out DIR]
    python benchmarks/gpu_speed.py --device cpu --smoke     runs every line at a tiny size, to see that it works

roi_align  the Triton kernels and torchvision's operator: 1000 boxes, 7x7 and 14x14, 256 channels, map 200x336;
           torchvision's has no bfloat16, so it gets float32 there, as its own model gives it.
training   images a second at 800x1333, 8 objects an image: normalisation, forward, backward, SGD.
inference  the same from uint8 images on the GPU. torchvision's forward ends with masks pasted to full size; ours is
           measured without, as masks stay small, and with ("pasted", done on the CPU).

Both models take turns. Without a CUDA device nothing is written and the exit status is 2.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision_twin import make_twins, objects, photograph

from maskrcnn.engines.prepare import prepare
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.roi_align import roi_align

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Cell = float | str | None


@dataclass(kw_only=True, slots=True)
class Scale:
    """How large everything is."""

    image: tuple[int, int] = (800, 1333)
    map: tuple[int, int] = (200, 336)
    boxes: int = 1000
    channels: int = 256
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    precisions: tuple[str, ...] = PRECISIONS
    seconds: float = 3.0


SMOKE = Scale(
    image=(64, 96),
    map=(16, 24),
    boxes=8,
    channels=8,
    batches=(1,),
    precisions=("fp32", "bf16"),
    seconds=0.0,
)


def set_precision(precision: str) -> None:
    """tf32 may be used by convolutions and matrix products, or not."""
    how = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = how
    torch.backends.cudnn.conv.fp32_precision = how  # pyright: ignore[reportAttributeAccessIssue]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, HALVES[precision]) if precision in HALVES else nullcontext()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_in_turns(
    calls: dict[str, Callable[[], Any]], device: torch.device, budget: float
) -> dict[str, float]:
    """The least seconds of each call, taken in turns for `budget` seconds each after three warm-up calls."""
    for call in calls.values():
        for _ in range(3 if budget else 1):
            call()
    best = dict.fromkeys(calls, float("inf"))
    wait(device)
    started = time.perf_counter()
    while best[next(iter(calls))] == float("inf") or time.perf_counter() - started < budget * len(calls):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait(device)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure_roi_align(scale: Scale, device: torch.device) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    (h, w), n = scale.map, scale.boxes
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([w * 2.8, h * 2.8])
    size = 10 + torch.rand(n, 2, generator=generator) * torch.tensor([w * 1.2, h * 1.2])
    boxes = torch.cat([torch.zeros(n, 1), corner, corner + size], 1).to(device)
    rows = []
    for dtype, size, backward in itertools.product((torch.float32, torch.bfloat16), (7, 14), (False, True)):
        ours_map = torch.randn(1, scale.channels, h, w, generator=generator).to(device, dtype)
        ours_map = ours_map.to(memory_format=torch.channels_last).requires_grad_(backward)
        their_map = ours_map.detach().float().contiguous().requires_grad_(backward)

        def run(
            pool: Callable[..., Tensor], input: Tensor, size: int = size, backward: bool = backward
        ) -> None:
            out = pool(input, boxes, size, 0.25, 0, True)
            if backward:
                out.backward(torch.ones_like(out))
                input.grad = None

        seconds = seconds_in_turns(
            {
                "ours": lambda x=ours_map, run=run: run(roi_align, x),
                "torchvision": lambda x=their_map, run=run: run(torchvision.ops.roi_align, x),
            },
            device,
            scale.seconds / 6,
        )
        # At the least the map is read and the bins are written, and both the other way backward.
        least = (ours_map.nbytes + n * scale.channels * size**2 * ours_map.element_size()) * (
            1 + 2 * backward
        )
        rows.append(
            {
                "precision": str(dtype).removeprefix("torch."),
                "size": size,
                "pass": "forward and backward" if backward else "forward",
                **{f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()},
                "ratio": round(seconds["torchvision"] / seconds["ours"], 2),
                "gb_per_s": round(least / seconds["ours"] / 1e9, 1),
            }
        )
    return rows


class Runner:
    """Ours or torchvision's at one precision on one batch: `train()` is a step, `detect()` an inference."""

    def __init__(
        self, model: nn.Module, precision: str, batch: int, scale: Scale, device: torch.device
    ) -> None:
        self.model, self.precision, self.device = model, precision, device
        picture = torch.from_numpy(photograph(*scale.image)).permute(2, 0, 1).to(device)
        self.images = [picture.roll(i, dims=2) for i in range(batch)]
        ours, theirs = objects(*scale.image)
        self.ours = [ours.to(device) for _ in self.images]
        self.theirs = [{name: value.to(device) for name, value in theirs.items()} for _ in self.images]
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-7, momentum=0.9, weight_decay=1e-4)

    def train(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            losses = (
                self.model(self.model.preprocess(self.images), self.ours)
                if isinstance(self.model, MaskRCNN)
                else self.model([image.float() / 255 for image in self.images], self.theirs)
            )
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        self.optimizer.step()

    def detect(self, paste: bool = False) -> None:
        self.model.eval()
        if isinstance(self.model, MaskRCNN):  # prepared: has its precision
            for found in self.model.detect(self.model.preprocess(self.images)):
                if paste:
                    assert found.masks is not None
                    np.asarray(found.masks.to("cpu"))
            return
        with torch.inference_mode(), autocast(self.precision, self.device):
            self.model([image.float() / 255 for image in self.images])


def measure_models(scale: Scale, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for precision, batch in itertools.product(scale.precisions, scale.batches):
        set_precision(precision)
        ours, theirs = make_twins(min(scale.image), max(scale.image))
        ours = ours.to(device).to(memory_format=torch.channels_last)
        theirs = theirs.to(device)
        for kind in ("training", "inference"):
            row: dict[str, Any] = {"kind": kind, "precision": precision, "batch": batch}
            runners = {
                name: Runner(model, precision, batch, scale, device)
                for name, model in (("ours", ours), ("torchvision", theirs))
            }
            calls: dict[str, Callable[[], Any]] = {
                name: runner.train if kind == "training" else runner.detect
                for name, runner in runners.items()
            }
            if kind == "inference":
                prepare(ours, precision if precision in HALVES else "fp32", "eager")
                calls["ours_pasted"] = lambda ours=runners["ours"]: ours.detect(paste=True)
            fitting = {}
            for name, call in calls.items():
                row[f"{name}_mib"] = peak_mib(call, device)
                if row[f"{name}_mib"] != "out of memory":
                    fitting[name] = call
                else:
                    row[f"{name}_images_a_second"] = "out of memory"
            if fitting:
                seconds = seconds_in_turns(fitting, device, scale.seconds)
                row |= {f"{name}_images_a_second": round(batch / s, 2) for name, s in seconds.items()}
            rows.append(row)
            print(row, flush=True)
            del runners, calls, fitting
        del ours, theirs
        free(device)
    return rows


def peak_mib(call: Callable[[], Any], device: torch.device) -> Cell:
    """Of the memory allocated on the GPU while `call` runs; None on a CPU."""
    free(device)
    if device.type != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    try:
        call()
        wait(device)
    except torch.OutOfMemoryError:
        return "out of memory"
    return round(torch.cuda.max_memory_allocated(device) / 2**20)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def not_measured(scale: Scale) -> dict[str, Any]:
    """The rows that there would be."""
    return {
        "roi_align": [
            {"precision": p, "size": s, "pass": b}
            for p, s, b in itertools.product(
                ("float32", "bfloat16"), (7, 14), ("forward", "forward and backward")
            )
        ],
        "models": [
            {"kind": kind, "precision": precision, "batch": batch}
            for precision, batch, kind in itertools.product(
                scale.precisions, scale.batches, ("training", "inference")
            )
        ],
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown. A cell without a number says "not measured"."""

    def line(row: dict[str, Any], *keys: str) -> str:
        cells = ["not measured" if row.get(key) is None else str(row[key]) for key in keys]
        return "| " + " | ".join(cells) + " |"

    device = result.get("device")
    about = f"{device}, torch {result['torch']}, torchvision {result['torchvision']}. " if device else ""
    lines = [
        "# Speed on a GPU: Mask R-CNN R50-FPN, ours and torchvision's",
        "",
        about
        + "`python benchmarks/gpu_speed.py` fills this page on a machine with CUDA; it says what is measured.",
    ]
    if not device:
        lines += ["", "Not measured yet: no GPU was at hand."]
    lines += [
        "",
        "## RoIAlign, ms",
        "",
        "| precision | bins | pass | ours | torchvision | times as fast | ours, GB/s |",
    ]
    lines += ["|---|---:|---|---:|---:|---:|---:|"]
    lines += [
        line(row, "precision", "size", "pass", "ours_ms", "torchvision_ms", "ratio", "gb_per_s")
        for row in result["roi_align"]
    ]
    rate, memory = "{}_images_a_second", "{}_mib"
    for kind, names in (
        ("training", ("ours", "torchvision")),
        ("inference", ("ours", "ours_pasted", "torchvision")),
    ):
        lines += ["", f"## {kind.capitalize()} at 800x1333: images a second, and peak GPU memory in MiB", ""]
        heads = [name.replace("_", ", ") for name in names]
        lines += ["| precision | batch | " + " | ".join(heads + [f"{h}, MiB" for h in heads]) + " |"]
        lines += ["|---|---:|" + "---:|" * (2 * len(names))]
        keys = [rate.format(n) for n in names] + [memory.format(n) for n in names]
        lines += [line(row, "precision", "batch", *keys) for row in result["models"] if row["kind"] == kind]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "gpu_speed.md").write_text(tables(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--batches", type=int, nargs="+", default=Scale().batches)
    parser.add_argument("--seconds", type=float, default=Scale().seconds, help="a row and model")
    parser.add_argument("--only", choices=("roi_align", "models"), help="one of the two (both)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(benchmarks/results; of --smoke nowhere)")
    args = parser.parse_args()
    if args.device == "cpu" and not args.smoke:
        parser.error(
            "--device cpu only checks the script: add --smoke (benchmarks/cpu_speed.py measures CPUs)"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_speed: no CUDA device here, so nothing was measured", file=sys.stderr)
        sys.exit(2)
    device = torch.device(args.device)
    scale = SMOKE if args.smoke else Scale(batches=tuple(args.batches), seconds=args.seconds)
    result = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU, smoke test",
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "roi_align": measure_roi_align(scale, device) if args.only != "models" else [],
        "models": measure_models(scale, device) if args.only != "roi_align" else [],
    }
    if args.out or not args.smoke:
        write(result, args.out or RESULTS)
    print(tables(result))


if __name__ == "__main__":
    main()
