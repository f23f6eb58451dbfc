"""Mask R-CNN R50-FPN on a CUDA GPU: ours against torchvision's with the same weights, RoIAlign alone, and our engines.

    python benchmarks/gpu_speed.py [--only roi_align|models|engines] [--batches 1 2 4 8 16 32] [--seconds S] [--out DIR]
    python benchmarks/gpu_speed.py --device cpu --smoke     runs every line at a tiny size, to see that it works

roi_align  the Triton kernels and torchvision's operator: 1000 boxes, 7x7 and 14x14, 256 channels, map 200x336;
           torchvision's has no bfloat16, so it gets float32 there, as its own model gives it.
training   images a second at 800x1333, 8 objects an image: normalisation, forward, backward, SGD; in fp16 the loss is
           scaled. Ours is in the fixed-size form, as in the training loop on a GPU.
inference  the same from uint8 images on the GPU. torchvision's forward ends with masks pasted to full size; ours is
           measured without, as masks stay small, and with ("pasted", done on the CPU).

engines    our model in plain PyTorch, by torch.compile and as recorded CUDA graphs, as `maskrcnn bench` measures it:
           each in a process of its own.

Both models take turns. Every row is written as soon as it is measured. Without a CUDA device nothing is written and the
exit status is 2; it is 1 where a row failed otherwise than for want of memory.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
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

from maskrcnn.bench.largest import runs_in_memory
from maskrcnn.bench.measure import Task, measure_all, set_tf32
from maskrcnn.engines.prepare import prepare
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.ops.roi_align import roi_align

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("bf16", "fp32", "tf32", "fp16")  # in this order: a run may be ended before the last
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
    precisions=("bf16",),
    seconds=0.0,
)


def set_precision(precision: str) -> None:
    """Let convolutions and matrix products round to tf32, or not."""
    set_tf32(precision == "tf32")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


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


def measure_roi_align(scale: Scale, device: torch.device) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    (h, w), n = scale.map, scale.boxes
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([w * 2.8, h * 2.8])
    size = 10 + torch.rand(n, 2, generator=generator) * torch.tensor([w * 1.2, h * 1.2])
    boxes = torch.cat([torch.zeros(n, 1), corner, corner + size], 1).to(device)
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
        yield {
            "precision": str(dtype).removeprefix("torch."),
            "size": size,
            "pass": "forward and backward" if backward else "forward",
            **{f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()},
            "ratio": round(seconds["torchvision"] / seconds["ours"], 2),
            "gb_per_s": round(least / seconds["ours"] / 1e9, 1),
        }


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
        self.optimizer: torch.optim.SGD | None = None
        scaled = precision == "fp16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)  # type: ignore[attr-defined]

    def train(self) -> None:
        self.model.train()
        if isinstance(self.model, MaskRCNN):
            self.model.fixed_size = self.device.type == "cuda"  # as the training loop does
        if self.optimizer is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.SGD(parameters, lr=1e-7, momentum=0.9, weight_decay=1e-4, fused=True)
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            losses = (
                self.model(self.model.preprocess(self.images), self.ours)
                if isinstance(self.model, MaskRCNN)
                else self.model([image.float() / 255 for image in self.images], self.theirs)
            )
        self.scaler.scale(torch.stack([loss.float() for loss in losses.values()]).sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def detect(self, paste: bool = False) -> None:
        self.model.eval()
        if isinstance(self.model, MaskRCNN):  # prepared: has its precision
            self.model.fixed_size = False  # as a loaded model
            for found in self.model.detect(self.model.preprocess(self.images)):
                if paste:
                    assert found.masks is not None
                    np.asarray(found.masks.to("cpu"))
            return
        with torch.inference_mode(), autocast(self.precision, self.device):
            self.model([image.float() / 255 for image in self.images])


def measure_models(scale: Scale, device: torch.device) -> Iterator[dict[str, Any]]:
    for precision, batch in itertools.product(scale.precisions, scale.batches):
        set_precision(precision)
        ours, theirs = make_twins(min(scale.image), max(scale.image))
        ours = ours.to(device).to(memory_format=torch.channels_last)
        theirs = theirs.to(device)
        for kind in ("training", "inference"):
            if kind == "inference":
                prepare(ours, precision if precision in HALVES else "fp32", "eager")
            yield measure_pair(kind, precision, batch, (ours, theirs), scale, device)
            free(device)
        del ours, theirs
        free(device)


def measure_pair(
    kind: str,
    precision: str,
    batch: int,
    models: tuple[nn.Module, nn.Module],
    scale: Scale,
    device: torch.device,
) -> dict[str, Any]:
    """Speed and memory of both models in turns; of each alone where one does not fit beside the other."""
    row: dict[str, Any] = {"kind": kind, "precision": precision, "batch": batch}
    names = ("ours", "torchvision")
    calls: dict[str, Callable[[], Any]] = {}
    for name, model in zip(names, models, strict=True):
        runner = Runner(model, precision, batch, scale, device)
        calls[name] = runner.train if kind == "training" else runner.detect
        if name == "ours" and kind == "inference":
            calls["ours_pasted"] = lambda runner=runner: runner.detect(paste=True)
    for name, call in list(calls.items()):
        row[f"{name}_mib"] = peak_mib(call, device)
        if row[f"{name}_mib"] == "out of memory":
            row[f"{name}_images_a_second"] = "out of memory"
            del calls[name]
    for together in [calls] if len(calls) < 2 else [calls, *({n: call} for n, call in calls.items())]:
        seconds: dict[str, float] = {}
        if together and runs_in_memory(
            lambda turns=together, found=seconds: found.update(seconds_in_turns(turns, device, scale.seconds))
        ):
            row |= {f"{name}_images_a_second": round(batch / s, 2) for name, s in seconds.items()}
        if together is calls and seconds:
            break
        row |= {f"{name}_images_a_second": "out of memory" for name in together if name not in seconds}
    return row


def measure_engines(tiny: bool, device: torch.device) -> Iterator[dict[str, Any]]:
    """Speed of our model by each engine in bf16, its input on the device."""
    size, batches = ((96, 128), (1,)) if tiny else ((800, 1333), (1, 8))
    cuda = device.type == "cuda"
    ways = ("eager", "compile", "cuda-graph") if cuda else ("eager",)
    for mode, batch, engine in itertools.product(("training", "inference"), batches, ways):
        values: dict[str, Any] = {"mode": mode, "precision": "bf16", "engine": engine}
        task = Task(
            model="mask_rcnn_R_50_FPN_1x",
            size=size,
            batch=batch,
            device=device.type,
            repeats=1 if tiny else 20,
            tiny=tiny,
            **values,
        )
        found = next(measure_all([task], 150.0))
        yield {
            "kind": mode,
            "engine": engine,
            "batch": batch,
            "images_a_second": found.seconds and round(batch / found.seconds, 2),
            "mib": found.memory_mib and round(found.memory_mib),
            "error": found.error,
        }


def peak_mib(call: Callable[[], Any], device: torch.device) -> Cell:
    """Peak of the memory allocated on the GPU over two calls; None on a CPU.

    Two, as the optimiser's own memory is there from the end of the first.
    """
    cuda = device.type == "cuda"
    free(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)

    def calls() -> None:
        for _ in range(2 if cuda else 1):
            call()
        wait(device)

    if not runs_in_memory(calls):
        return "out of memory"
    return round(torch.cuda.max_memory_allocated(device) / 2**20) if cuda else None


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
        "engines": [
            {"kind": kind, "batch": batch, "engine": engine}
            for kind, batch, engine in itertools.product(
                ("training", "inference"), (1, 8), ("eager", "compile", "cuda-graph")
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
    lines += ["", "## Our engines in bf16 at 800x1333: images a second, and peak GPU memory in MiB", ""]
    lines += ["| pass | batch | engine | images a second | MiB |", "|---|---:|---|---:|---:|"]
    for row in result.get("engines", []):
        failed = f"failed: {row['error']}".replace("|", "/") if row.get("error") else None
        lines.append(
            line(
                row | {"speed": failed or row.get("images_a_second")},
                "kind",
                "batch",
                "engine",
                "speed",
                "mib",
            )
        )
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], folder: Path, name: str = "gpu_speed") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(tables(result))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--batches", type=int, nargs="+", default=Scale().batches)
    parser.add_argument("--seconds", type=float, default=Scale().seconds, help="a row and model")
    parser.add_argument("--only", choices=("roi_align", "models", "engines"), help="one of the three (all)")
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
    measured: dict[str, Iterator[dict[str, Any]]] = {
        "roi_align": measure_roi_align(scale, device),
        "models": measure_models(scale, device),
        "engines": measure_engines(args.smoke, device),
    }
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU, smoke test",
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        **{name: [] for name in measured},
    }
    folder = args.out or (None if args.smoke else RESULTS)
    for name in [args.only] if args.only else measured:
        for row in measured[name]:
            print(row, flush=True)
            result[name].append(row)
            if folder:  # at once: this may be ended at any time
                write(result, folder, f"gpu_speed_{args.only}" if args.only else "gpu_speed")
    print(tables(result))
    sys.exit(1 if any(row.get("error") for row in result["engines"]) else 0)


if __name__ == "__main__":
    main()
