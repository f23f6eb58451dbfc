"""Mask R-CNN R50-FPN on the CPU: ours against torchvision's, same weights, same photograph, same threads.

    python benchmarks/cpu_speed.py [--only PART ...] [--compile] [--rounds N] [--out DIR]

Every part is paired: the models take turns, each in a process of its own as people run it, so a busy machine slows
all of them; the table has medians of seconds, and medians of each round's ratio. `import maskrcnn` asks for large
memory pages, which torchvision alone does not: it has a row with them, too. "Freed memory kept" is how
`maskrcnn predict` and `evaluate` run. The photograph is 480x640, shown to the network at 800x1066; all models find
100 objects.

inference  picture in (uint8 array), full-size masks out. torchvision's as people use it: float32, NCHW.
training   one step of batch 1: resize, forward, backward, SGD with momentum; 8 objects.
stages     the same two, stage by stage (`stage_clock.py`).
memory     peak resident memory of each in a process of its own (Linux), less what it had after its imports.
ceilings   what convolutions and matrix products reach on this machine, now.

Each kind of processor (`maskrcnn.processor.kind`) has a table, `DIR/cpu_speed_KIND.json` and `.md`; parts not
measured in this run keep what it has of them. A precision that the processor imitates is left out, and the table says
so. `--isa AVX2` measures both sides as a processor with AVX2 alone would run them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stage_clock import STAGES, StageClock
from torch import Tensor, nn
from torchvision_twin import make_twins, objects, photograph

from maskrcnn import processor
from maskrcnn.engines.heap import keep_freed_memory
from maskrcnn.engines.prepare import prepare
from maskrcnn.images.resize import resize_size
from maskrcnn.memory import forget_peak, peak_mib
from maskrcnn.models import mask_rcnn
from maskrcnn.models.mask_rcnn import MaskRCNN

RESULTS = Path(__file__).parent / "results"
IMAGE = (480, 640)
NETWORK = resize_size(*IMAGE, 800, 1333)
TORCHVISION = "torchvision fp32"
LARGE_PAGES = "torchvision fp32, large pages"
OURS = ("ours fp32", "ours bf16")
AS_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
KEPT = ", freed memory kept"
PROCESSES = 3
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


class Model:
    """One of the models, in this process: what a child answers."""

    def __init__(self, kind: str, name: str) -> None:
        self.imported = peak_mib() or 0
        if name.endswith(KEPT):
            keep_freed_memory()
        ours, theirs = make_twins()
        precision = "bf16" if name.startswith("ours bf16") else "fp32"
        self.clock = StageClock()
        self.image = photograph(*IMAGE)
        self.step: Step | None = None
        self.model = theirs if name.startswith(TORCHVISION) else ours
        del ours, theirs
        if kind == "training":
            if isinstance(self.model, MaskRCNN):
                self.model.to(memory_format=torch.channels_last)
            self.step = Step(self.model, autocast=precision == "bf16")
        elif isinstance(self.model, MaskRCNN):
            prepare(self.model, precision)
            if name.endswith("compiled"):
                self.model.backbone.compile()
                self.model.rpn.head.compile(dynamic=True)
        else:
            self.model.eval()
        forget_peak()  # making twins holds both models
        self.built = peak_mib()

    def _call(self) -> tuple[np.ndarray, Tensor] | float:
        if self.step is not None:
            return self.step()
        detect = detect_ours if isinstance(self.model, MaskRCNN) else detect_theirs
        return detect(self.model, self.image)  # pyright: ignore[reportArgumentType]

    def check(self) -> Any:
        """The loss, or the boxes."""
        found = self._call()
        return found if isinstance(found, float) else found[1].tolist()

    def seconds(self) -> float:
        start = time.perf_counter()
        self._call()
        return time.perf_counter() - start

    def stages(self) -> dict[str, float]:
        """Of one run; the first is the warm-up."""
        with self.clock.watch(self.model), self.clock.run():
            if self.step is not None:
                self.step(self.clock)
            elif isinstance(self.model, MaskRCNN):
                found = self.model.predict(self.image)
                with self.clock.stage("paste"):
                    np.asarray(found.masks)
            else:
                detect_theirs(self.model, self.image)
        if self.first:
            self.clock.runs.clear()
            self.first = False
            return {}
        return rounded(self.clock.medians())

    first = True

    def memory(self) -> dict[str, int]:
        for _ in range(2):
            self._call()
        peak = peak_mib() or 0
        return {
            "peak_mib": round(peak),
            "above_imports_mib": round(peak - self.imported),
            "built_mib": round(self.built),
        }


class Child:
    """A `Model` in a process of its own. Ask it by the name of one of its methods."""

    def __init__(self, kind: str, name: str, threads: int) -> None:
        # Making torchvision's weights imports our package, which would turn large pages on.
        pages = (
            {"THP_MEM_ALLOC_ENABLE": "1" if name == LARGE_PAGES else "0"}
            if name.startswith(TORCHVISION)
            else {}
        )
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", kind, name, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | pages,
        )
        self.name = name

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: its process ended")
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its input, at which it ends


def answer(kind: str, name: str) -> None:
    model = Model(kind, name)
    for line in sys.stdin:
        print(json.dumps(getattr(model, line.strip())()), flush=True)


# ---------------------------------------------------------------------------------------------------
# Parts


def take_turns(children: list[Child], rounds: int) -> dict[str, list[float]]:
    """Seconds of each model in each round."""
    seconds: dict[str, list[float]] = {child.name: [] for child in children}
    for _ in range(rounds):
        for child in children:
            seconds[child.name].append(child.ask("seconds"))
    return seconds


def compare(seconds: dict[str, list[float]], part: str) -> dict[str, Any]:
    """Medians, and each round's ratio to torchvision's."""
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
        print(f"  {name:30s} {rows[name]['median_s']:7.3f} s   {rows[name]['ratio']:5.2f}x   target {target}")
    return {"rounds": len(seconds[TORCHVISION]), "rows": rows}


def imitates_bf16() -> bool:
    return processor.relative_speed(torch.bfloat16) < processor.IMITATED


def ours() -> tuple[str, ...]:
    """Ours in each precision that this processor has units for."""
    return OURS[:1] if imitates_bf16() else OURS


def start(stack: ExitStack, kind: str, names: Sequence[str], threads: int) -> list[Child]:
    return [stack.enter_context(Child(kind, name, threads)) for name in names]


def measure_inference(args: argparse.Namespace) -> dict[str, Any]:
    compiled = tuple(f"{name}, compiled" for name in ours()) if args.compile else ()
    names = (TORCHVISION, LARGE_PAGES, *ours(), *(f"{name}{KEPT}" for name in ours()), *compiled)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    same = 0
    # Which memory a process happens to get makes it up to a tenth faster or slower: several of each.
    for _ in range(PROCESSES):
        with ExitStack() as stack:
            children = start(stack, "inference", names, args.threads)
            boxes = {child.name: torch.tensor(child.ask("check")) for child in children}  # the warm-up
            counts = {name: len(b) for name, b in boxes.items()}
            if set(counts.values()) != {100}:
                sys.exit(f"expected 100 objects from every model, got {counts}")
            same = sum_of_matches(boxes[OURS[0]], boxes[TORCHVISION])
            for name, times in take_turns(children, args.rounds).items():
                seconds[name] += times
    return {
        "detections": 100,
        "boxes_shared_by_ours_fp32_and_torchvision": same,
        **compare(seconds, "inference"),
    }


def sum_of_matches(a: Tensor, b: Tensor) -> int:
    """How many boxes of `a` have one of `b` within 2 pixels."""
    return int(((a[:, None] - b[None]).abs().amax(2) < 2).any(1).sum())


def measure_training(args: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        children = start(stack, "training", (TORCHVISION, LARGE_PAGES, *ours()), args.threads)
        losses = {child.name: child.ask("check") for child in children}
        if not all(np.isfinite(v) for v in losses.values()):
            sys.exit(f"expected finite losses, got {losses}")
        return compare(take_turns(children, args.rounds), "training")


def measure_stages(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, dict[str, Any]] = {}
    for kind in ("inference", "training"):
        with ExitStack() as stack:
            children = start(stack, kind, (TORCHVISION, *ours()), args.threads)
            for _ in range(args.rounds + 1):
                result[kind] = {child.name: child.ask("stages") for child in children}
        print("\n".join(["", kind, *stage_table(result[kind])]))
    return result


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind in ("inference", "training"):
        for name in (TORCHVISION, *ours()):
            with Child(kind, name, args.threads) as child:
                result.setdefault(kind, {})[name] = child.ask("memory")
            print(f"  {kind:10s} {name:18s} {result[kind][name]}")
    return result


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
        if "bf16" in name and imitates_bf16():
            continue
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
    limited = " (limited to AVX2)" if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" else ""
    speed = processor.relative_speed(torch.bfloat16)
    return {
        "machine": processor.describe().line() + limited,
        "threads": threads,
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "left_out": f"bf16 is left out: this processor imitates it, at {speed:.2f} of fp32's speed."
        if imitates_bf16()
        else "",
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
        f"{where['machine']}; {where['threads']} threads. "
        "Made by `benchmarks/cpu_speed.py`, which says what is measured and how; "
        f"image {IMAGE[0]}x{IMAGE[1]}, network input {NETWORK[0]}x{NETWORK[1]}, 100 detections.",
        *(["", where["left_out"]] if where["left_out"] else []),
    ]
    for part, title in (("inference", "Inference, one image"), ("training", "One training step, batch 1")):
        if part in result:
            lines += ["", f"## {title}", "", "| | seconds | times as fast | goal |", "|---|---:|---:|---:|"]
            for name, row in result[part]["rows"].items():
                goal = f"{row['target']}" if "target" in row else ""
                lines.append(f"| {name} | {row['median_s']:.2f} | {row['ratio']:.2f} | {goal} |")
            lines += [
                "",
                f"Medians of {result[part]['rounds']} rounds in turns, each model in its own process.",
            ]
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
    parser.add_argument("--isa", choices=["AVX2"], help="as on a processor that has no more")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.isa and os.environ.get("ONEDNN_MAX_CPU_ISA") != args.isa:  # read before the first operator runs
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AS_AVX2)
    torch.set_num_threads(args.threads)
    if args.child:
        answer(*args.child)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"cpu_speed_{processor.kind()}.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    result["machine"] = machine(args.threads)
    for part in args.only or PARTS:
        print(part, flush=True)
        result[part] = PARTS[part](args)
        file.write_text(json.dumps(result, indent=1) + "\n")
        file.with_suffix(".md").write_text(tables(result))


if __name__ == "__main__":
    main()
