"""Prediction of many small pictures to Parquet, some of them broken, killed on the way and started again.

    python benchmarks/many_files.py OUT.json [--pictures 10000] [--broken 0.01]

The model is a tiny one with random weights: what is measured is all around it. A run in a process of its own is killed
with SIGKILL when a third of the pictures are written, and the same command started again. Told are the rows of each
picture (one, with an error for those that cannot be read), and the resident memory of the second run after each tenth
of it.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as parquet
import torch
from PIL import Image

from maskrcnn import zoo
from maskrcnn.processor import describe
from maskrcnn.weights.write import write_weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--broken", type=float, default=0.01)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = measure(Path(folder), args.pictures, round(args.pictures * args.broken))
    args.out.write_text(json.dumps({"machine": describe().line()} | told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


def measure(folder: Path, count: int, broken: int) -> dict[str, Any]:
    paths = write_pictures(folder / "in", count, broken)
    torch.manual_seed(0)
    model = zoo.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True)
    model.config.class_names = ("a", "b", "c")
    model.config.box_head.score_threshold, model.config.box_head.detections_per_image = 0.0, 10
    write_weights(folder / "model.safetensors", model.state_dict(), model.config)
    command = [sys.executable, "-m", "maskrcnn", "predict", str(folder / "in")]
    command += ["--model", str(folder / "model.safetensors"), "--out", str(folder / "out"), "--no-draw"]
    command += ["--format", "parquet", "--min-size", "64", "--max-size", "64", "--device", "cpu"]
    started = time.perf_counter()
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(rows(folder / "out")) < count / 3:
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = len(rows(folder / "out"))
    second = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    process, memory = psutil.Process(second.pid), dict[int, int]()
    while second.poll() is None:
        done = len(rows(folder / "out"))
        tenth = 10 * (done - kept) // max(count - kept, 1)
        memory[tenth] = process.memory_info().rss >> 20
        time.sleep(1)
    seconds = time.perf_counter() - started
    found = rows(folder / "out")
    times = Counter(row["image"] for row in found)
    return {
        "pictures": count,
        "broken": broken,
        "rows after the kill": kept,
        "pictures with one row": sum(times[str(path)] == 1 for path in paths),
        "rows in all": len(found),
        "rows with an error": sum(bool(row["error"]) for row in found),
        "exit status": second.returncode,
        "resident MiB after each tenth": [memory[k] for k in sorted(memory)],
        "seconds": round(seconds),
    }


def write_pictures(folder: Path, count: int, broken: int) -> list[Path]:
    """Write noise of 64 x 48 pixels, of which some files are cut off in the middle."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{k:05}.png" for k in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    for k in rng.choice(count, broken, replace=False):
        content = paths[k].read_bytes()
        paths[k].write_bytes(content[: len(content) // 2])
    return paths


def rows(folder: Path) -> list[dict[str, Any]]:
    """Picture and error of every row that is written."""
    parts = sorted((folder / "predictions.parquet").glob("part-*.parquet"))
    return [row for part in parts for row in parquet.read_table(part, columns=["image", "error"]).to_pylist()]


if __name__ == "__main__":
    main()
