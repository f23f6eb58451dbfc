"""Memory for 300 detections on a 4000 x 3000 photograph: found, written as RLE and drawn.

    python benchmarks/mask_memory.py [--out FILE.json]

Each row is a process of its own; its peak is the most resident memory that it ever had (`maskrcnn.memory`), with
PyTorch and all. `ours` runs Mask R-CNN R50-FPN (random weights, 800 x 1066, fp32) on the photograph, and then
writes 300 detections with masks that fill boxes of a quarter of the picture on average: far more mask than
photographs have. `full masks` makes RLE of the same detections from torchvision's `paste_masks_in_image`,
which returns (N, 1, H, W) float32, without a model. At 300 that needs more memory than the machine has, so
it is run at 20 and 40 detections; the line through both gives 300.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

H, W, N = 3000, 4000, 300
LIMIT_MB = 1500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](int(args.child[1]))))
        return
    ours = measure("ours", N)
    few, more = measure("full masks", 20), measure("full masks", 40)
    slope = (more["peak_mb"] - few["peak_mb"]) / 20
    result = {
        "machine": f"{os.cpu_count()}-core {platform.machine()}",
        "torch": version("torch"),
        "image": [H, W],
        "detections": N,
        "ours": ours,
        "full_masks_20": few,
        "full_masks_40": more,
        "full_masks_300_extrapolated_mb": round(more["peak_mb"] + (N - 40) * slope),
    }
    print(f"\n{N} detections on {W} x {H}: peak resident memory in MB")
    print("ours     " + ", ".join(f"{k} {v}" for k, v in ours["after_mb"].items()))
    print(f"         peak {ours['peak_mb']}; RLE and picture took {ours['write_seconds']} s")
    print(f"full masks: {few['peak_mb']} for 20, {more['peak_mb']} for 40", end="")
    print(f", so {result['full_masks_300_extrapolated_mb']} for {N}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if ours["peak_mb"] > LIMIT_MB:
        sys.exit(f"over the limit of {LIMIT_MB} MB")


def measure(name: str, count: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, str(count)]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def peak_mb() -> int:
    from maskrcnn.memory import peak_mib

    return round(peak_mib() or 0)


def random_masks(count: int) -> tuple[Any, Any]:
    """probs (N, 28, 28): round blobs; boxes (N, 4): a quarter of the picture on average."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (0.2 + 0.6 * torch.rand(count, 2, generator=generator)) * torch.tensor([W, H])
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([W, H]) - size)
    cell = torch.linspace(-1, 1, 28)
    radius = (cell[:, None] ** 2 + cell[None] ** 2).sqrt()
    noise = 0.3 * torch.randn(count, 28, 28, generator=generator)
    return torch.sigmoid(8 * (0.95 - radius) + noise), torch.cat([corner, corner + size], 1)


def ours(count: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from PIL import Image

    from maskrcnn.engines.prepare import prepare
    from maskrcnn.masks import PredictedMasks
    from maskrcnn.predict import predict_stream, write_predictions
    from maskrcnn.structures import Instances
    from maskrcnn.zoo import build

    torch.set_num_threads(2)
    after = {"import": peak_mb()}
    model = build("mask_rcnn_R_50_FPN_3x")
    for name, weight in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            weight.mul_(0.2)  # or else random residual blocks grow the signal without end
    prepare(model)
    head = model.config.box_head  # random weights are sure of nothing and agree on few boxes: keep all
    head.score_threshold, head.nms_threshold, model.config.rpn.nms_threshold = 0.0, 1.0, 1.0
    head.detections_per_image = count
    after["model"] = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((W, H)).save(photo)
        [(path, found)] = predict_stream(model, [photo])
        assert isinstance(found, Instances)
        assert len(found) == count, len(found)
        after["detection"] = peak_mb()
        probs, boxes = random_masks(count)
        masks = PredictedMasks(probs, boxes, (H, W))
        scores, labels = torch.linspace(1, 0.5, count), torch.arange(count) % 80
        started = time.perf_counter()
        large = Instances((H, W), boxes, scores, labels, masks, image=path)
        write_predictions([(path, large)], folder)
        seconds = time.perf_counter() - started
        entries = json.loads(Path(folder, "predictions.json").read_text())
        assert len(entries) == count
        assert Path(folder, "photo.jpg").stat().st_size > 0
    after["writing"] = peak_mb()
    return {"peak_mb": peak_mb(), "after_mb": after, "write_seconds": round(seconds, 1)}


def full_masks(count: int) -> dict[str, Any]:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    from maskrcnn.masks import rle_encode

    probs, boxes = random_masks(count)
    masks = paste_masks_in_image(probs[:, None], boxes, (H, W))
    rles = [rle_encode((mask[0] >= 0.5).numpy()) for mask in masks]
    assert len(rles) == count
    return {"peak_mb": peak_mb()}


CHILDREN = {"ours": ours, "full masks": full_masks}

if __name__ == "__main__":
    main()
