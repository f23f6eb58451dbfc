"""Accuracy and speed of a trained model in every engine and every exported form.

    python benchmarks/exports.py --model RUN --data VAL.json --images DIR --calibration DIR [--name NAME] [--out DIR]

Each form is evaluated by `maskrcnn evaluate` on the same pictures: mask and box AP, and seconds for all pictures, one
after the other, reading and scoring included. Results go to DIR/exports_NAME_KIND.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ENGINES = (("eager", "fp32"), ("cpu", "fp32"), ("openvino", "fp32"), ("onnx", "fp32"), ("openvino", "bf16"))
EXPORTS = (
    ("onnx", "fp32", "m.onnx"),
    ("openvino", "fp32", "m.xml"),
    ("openvino", "bf16", "m_bf16.xml"),
    ("openvino", "int8", "m_int8.xml"),
    ("torch", "fp32", "m.pt2"),
)


def maskrcnn(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "maskrcnn", *command], check=True, capture_output=True, text=True)


def evaluated(args: argparse.Namespace, model: str, folder: Path, *options: str) -> dict[str, Any]:
    out = folder / "found.json"
    start = time.perf_counter()
    maskrcnn(
        "evaluate",
        "--model",
        model,
        "--data",
        args.data,
        "--images",
        args.images,
        "--json",
        str(out),
        *options,
    )
    seconds = time.perf_counter() - start
    found = json.loads(out.read_text())
    row = {"mask_ap": found["segm"]["AP"], "box_ap": found["bbox"]["AP"], "seconds": round(seconds, 1)}
    print(model, options, row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "data", "images", "calibration"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--name", default="model")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from maskrcnn import processor

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for engine, precision in ENGINES:
            if (
                precision == "bf16"
                and processor.relative_speed(processor.DTYPES["bf16"]) < processor.IMITATED
            ):
                continue
            how = ("--engine", engine, "--precision", precision)
            evaluated_once = evaluated(args, args.model, folder, *how)
            rows[f"engine {engine}, {precision}"] = evaluated_once
        for format, precision, name in EXPORTS:
            how = ("--calibration", args.calibration) if precision == "int8" else ()
            maskrcnn(
                *("export", "--model", args.model, "--format", format, "--precision", precision),
                *("--out", str(folder / name), *how),
            )
            row = evaluated(args, str(folder / name), folder)
            size = sum(p.stat().st_size for p in folder.glob(Path(name).stem + ".*")) / 2**20
            rows[f"export {format}, {precision}"] = {**row, "megabytes": round(size, 1)}
    found = {"machine": processor.describe().line(), "model": args.name, "rows": rows}
    path = args.out / f"exports_{args.name}_{processor.kind()}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        f"# Engines and exports of {args.name}",
        "",
        found["machine"] + ". Made by `benchmarks/exports.py`.",
        "",
    ]
    lines += ["| | mask AP | box AP | seconds | MB |", "|---|---:|---:|---:|---:|"]
    for name, row in rows.items():
        size = f"{row['megabytes']:.0f}" if "megabytes" in row else ""
        lines.append(f"| {name} | {row['mask_ap']:.4f} | {row['box_ap']:.4f} | {row['seconds']} | {size} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
