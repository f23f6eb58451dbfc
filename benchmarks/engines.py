"""Engines side by side: whole `predict` of an 800x1066 picture, beside torchvision's Mask R-CNN R50-FPN.

    python benchmarks/engines.py [--models NAME ...] [--engines NAME ...] [--rounds N] [--isa AVX2] [--out DIR]

Each (engine, precision) is a process of its own; they take turns, and the table has medians of seconds and of each
round's ratio to torchvision's `maskrcnn_resnet50_fpn` in fp32 (keypointrcnn_resnet50_fpn for key points), as people
use it. A model's weights are random, scaled so that it finds objects (`torchvision_twin.fill`); R50-FPN has
torchvision's very weights. Start-up is a process from its start to the first result, imports included, with the
graphs in the cache. `--isa AVX2` limits PyTorch, MKL, oneDNN and OpenVINO to AVX2; ONNX Runtime knows no such limit and
is left out then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TWIN = "mask_rcnn_R_50_FPN_3x"
MODELS = (
    TWIN,
    "mask_rcnn_X_101_32x8d_FPN_3x",
    "mask_rcnn_mobilenet_v2_FPN",
    "keypoint_rcnn_R_50_FPN_3x",
    "cascade_mask_rcnn_R_50_FPN_3x",
)
SIDES = ("torchvision fp32", "eager fp32", "cpu fp32", "openvino fp32", "onnx fp32", "compile fp32")
LOW = ("cpu bf16", "openvino bf16")
AS_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def child(model_name: str, side: str) -> None:
    """Answer every line of standard input with the seconds of one prediction, after the seconds of the first."""
    started = float(os.environ["STARTED"])
    engine, precision = side.split()
    import numpy as np
    import torch
    from torchvision_twin import fill, make_twins, photograph

    image = photograph(480, 640)
    if engine == "torchvision":
        model: Any = make_twins()[1].eval()
        if "keypoint" in model_name:
            import torchvision

            model = torchvision.models.detection.keypointrcnn_resnet50_fpn(
                weights=None, weights_backbone=None, box_score_thresh=0.0
            ).eval()

        def predict() -> int:
            with torch.inference_mode():
                found = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
            if "masks" in found:
                (found["masks"][:, 0] >= 0.5).numpy()
            return len(found["boxes"])
    else:
        import maskrcnn
        from maskrcnn.engines.heap import keep_freed_memory
        from maskrcnn.engines.prepare import prepare

        keep_freed_memory()
        model = make_twins()[0] if model_name == TWIN else maskrcnn.build(model_name)
        if model_name != TWIN:
            fill(model, 0)
            model.config.input.min_size, model.config.input.max_size = 800, 1333
        prepare(model, precision, engine)

        def predict() -> int:
            found = model.predict(image)
            if found.masks is not None:
                np.asarray(found.masks)
            return len(found)

    count = predict()
    print(json.dumps({"first": time.time() - started, "count": count}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        predict()
        print(json.dumps(time.perf_counter() - start), flush=True)


class Child:
    def __init__(self, model: str, side: str, environment: dict[str, str]) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", model, side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"STARTED": str(time.time())},
        )
        self.first = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self) -> float:
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def measure(model: str, sides: list[str], rounds: int, environment: dict[str, str]) -> dict[str, Any]:
    for side in sides:  # graphs are made, so that start-up finds them
        if side.split()[0] in ("openvino", "onnx", "compile"):
            with Child(model, side, environment):
                pass
    rows: dict[str, Any] = {}
    with ExitStack() as stack:
        children = []
        for side in sides:
            one = stack.enter_context(Child(model, side, environment))
            if one.first is None:
                rows[side] = None  # this engine has no form of the model
            else:
                children.append(one)
                one.ask()
        seconds: dict[str, list[float]] = {one.side: [] for one in children}
        for _ in range(rounds):
            for one in children:
                seconds[one.side].append(one.ask())
    for one in children:
        times = seconds[one.side]
        ratios = [a / b for a, b in zip(seconds[sides[0]], times, strict=True)]
        rows[one.side] = {
            "seconds": round(statistics.median(times), 3),
            "ratio": round(statistics.median(ratios), 2),
            "first": round(one.first["first"], 1),
            "detections": one.first["count"],
        }
        print(f"  {one.side:18}", rows[one.side], flush=True)
    return rows


def as_markdown(found: dict[str, Any]) -> str:
    lines = ["# Engines side by side", "", found["machine"] + ".", ""]
    lines += ["Made by `benchmarks/engines.py`, which says what is measured and how.", ""]
    for model, rows in found["models"].items():
        lines += [
            f"## {model}",
            "",
            "| | seconds | torchvision's R50-FPN is so many times as slow | start-up s |",
        ]
        lines.append("|---|---:|---:|---:|")
        for side, row in rows.items():
            if row is None:
                lines.append(f"| {side} | no form | | |")
            else:
                lines.append(f"| {side} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['first']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--engines", nargs="+", default=[*SIDES, *LOW], help="e.g. 'cpu fp32' 'openvino bf16'"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", choices=("AVX2",))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    environment = os.environ | (AS_AVX2 if args.isa else {})
    ask = "from maskrcnn import processor as p; "
    ask += "print(p.kind(), p.relative_speed(p.DTYPES['bf16']), p.describe().line())"
    told = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    )
    kind, bf16, machine = told.stdout.strip().split(" ", 2)
    sides = [SIDES[0], *(s for s in args.engines if s != SIDES[0] and ("bf16" not in s or float(bf16) > 0.4))]
    if args.isa:
        sides = [side for side in sides if not side.startswith("onnx")]
    path = args.out / f"engines_{kind}.json"
    found = json.loads(path.read_text()) if path.exists() else {"models": {}}
    found["machine"] = machine + (" (limited to AVX2)" if args.isa else "")
    with tempfile.TemporaryDirectory() as cache:
        environment["MASKRCNN_CACHE"] = os.environ.get("MASKRCNN_CACHE", cache)
        for model in args.models:
            print(model, flush=True)
            found["models"][model] = measure(model, sides, args.rounds, environment)
            args.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            path.with_suffix(".md").write_text(as_markdown(found))


if __name__ == "__main__":
    main()
