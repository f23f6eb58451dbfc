"""The nuclei as one grey band of 16 bits beside the same in RGB: two trainings by the clock, and their scores.

    python benchmarks/bands.py --data nuclei --weights mobilenet_v2_imagenet.pt --out runs/bands --minutes 10

Both train from the same weights with the settings of `nuclei.json`, side by side on one core each, for as many minutes
by the clock: what disturbs one disturbs both. The band is luma (BT.601) times 257, which 8 bits would round; the
colours are the pictures as they are. Written are the data set OUT/data, the runs OUT/rgb and OUT/band, and
OUT/bands.json, which says what came out.

Use a quiet machine: the clock is what both have in common. --one KIND is for the two processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskrcnn.config import Config, from_file
from maskrcnn.images.read import read_image
from maskrcnn.training.train import train

SETTINGS = Path(__file__).parent / "nuclei.json"
LUMA = np.array([0.299, 0.587, 0.114]) * 257


def write_grey(data: Path, out: Path) -> None:
    """Write a COCO data set's pictures as grey PNG of 16 bits, with its labels."""
    for part in ("train", "val"):
        labels = json.loads((data / f"annotations/{part}.json").read_text())
        (out / part).mkdir(parents=True, exist_ok=True)
        for image in labels["images"]:
            grey = np.rint(read_image(data / part / image["file_name"]) @ LUMA).astype(np.uint16)
            image["file_name"] = f"{Path(image['file_name']).stem}.png"
            Image.fromarray(grey).save(out / part / image["file_name"])
        (out / "annotations").mkdir(exist_ok=True)
        (out / f"annotations/{part}.json").write_text(json.dumps(labels))


def config_of(data: Path, weights: str, minutes: float, channels: int) -> Config:
    """Settings of a run: those of `nuclei.json`, of which only the bands and the clock differ."""
    config = from_file(SETTINGS)
    config.data.train, config.data.val = (str(data / f"annotations/{part}.json") for part in ("train", "val"))
    config.data.train_images, config.data.val_images = str(data / "train"), str(data / "val")
    config.model.input.channels = channels
    config.train.weights, config.train.max_minutes = weights, minutes
    config.train.evaluate_every = 0
    return config


def last_evaluation(run: Path) -> dict[str, Any]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "eval"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the nuclei, with annotations/, train/ and val/"
    )
    parser.add_argument("--weights", required=True, help="MobileNetV2's ImageNet weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--one", choices=("rgb", "band"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    grey = args.out / "data"
    if args.one:
        torch.set_num_threads(1)
        data, channels = (args.data, 0) if args.one == "rgb" else (grey, 1)
        train(config_of(data, args.weights, args.minutes, channels), args.out / args.one)
        return
    write_grey(args.data, grey)
    runs = [subprocess.Popen([sys.executable, *sys.argv, "--one", name]) for name in ("rgb", "band")]
    ends = [run.wait() for run in runs]
    if any(ends):
        raise SystemExit("a training failed")
    found = {}
    for name in ("rgb", "band"):
        evaluation = last_evaluation(args.out / name)
        found[name] = {
            "iterations": evaluation["iteration"],
            **{
                f"{kind} {score}": evaluation[kind][score]
                for kind in ("bbox", "segm")
                for score in ("AP", "AP50")
            },
        }
        print(name, found[name])
    (args.out / "bands.json").write_text(json.dumps({"minutes": args.minutes, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
