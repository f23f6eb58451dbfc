"""Overfit the key points of 24 COCO photographs: the proof that human pose trains.

    python benchmarks/overfit_keypoints.py --coco ../shared/data/coco --weights mobilenet_v2_imagenet.pt --out runs/pose

Takes the first 24 training images with a person whose key points are visible, trains MobileNetV2 with boxes and key
points on them and evaluates on the same images; writes when the key-point AP on them first passed 0.6 to
`benchmarks/results/overfit_keypoints.json`. 2 threads. `processor_minutes` are those of the whole run on all threads,
evaluations included: a machine that has other work (`load`, processes that wanted to run) takes longer by the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from maskrcnn import presets
from maskrcnn.config import Config
from maskrcnn.files import write_atomic
from maskrcnn.training.train import train

NUM_IMAGES, GOAL = 24, 0.6
RESULT = Path(__file__).parent / "results" / "overfit_keypoints.json"


def subset(coco: Path, out: Path) -> Path:
    """A COCO JSON of the first images with visible key points."""
    full = json.loads((coco / "annotations" / "person_keypoints_train2017.json").read_text())
    with_points = {a["image_id"] for a in full["annotations"] if a["num_keypoints"]}
    full["images"] = [i for i in full["images"] if i["id"] in with_points][:NUM_IMAGES]
    keep = {i["id"] for i in full["images"]}
    full["annotations"] = [a for a in full["annotations"] if a["image_id"] in keep]
    path = out.parent / f"{out.name}_{NUM_IMAGES}_images.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(full))
    return path


def recipe(annotations: Path, images: Path, weights: str, iterations: int) -> Config:
    config = presets.get("mask_rcnn_mobilenet_v2_FPN")
    config.model.name = "keypoint_rcnn_mobilenet_v2_FPN"
    config.data.train = config.data.val = str(annotations)
    config.data.train_images = config.data.val_images = str(images)
    config.data.num_workers = 0
    config.model.mask_head = None
    config.model.keypoint_head = presets.get("keypoint_rcnn_R_50_FPN_3x").model.keypoint_head
    assert config.model.keypoint_head is not None
    config.model.keypoint_head.num_convs, config.model.keypoint_head.conv_channels = 4, 128
    # Learning by heart: no augmentation, the size of the evaluation.
    config.data.augment.min_sizes, config.data.augment.horizontal_flip = (416,), 0.0
    config.data.augment.max_size = 640
    config.model.input.min_size, config.model.input.max_size = 416, 640
    config.model.box_head.num_samples, config.model.box_head.positive_fraction = 64, 0.5
    config.model.rpn.pre_nms_topk_train, config.model.rpn.post_nms_topk_train = 500, 500
    config.optim.lr = 8e-4
    config.optim.weight_decay = 0.0
    config.train.weights = weights
    config.train.iterations = iterations
    config.train.evaluate_every = 80
    config.train.checkpoint_every = 80
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(2)

    annotations = subset(args.coco, args.out)
    train(recipe(annotations, args.coco / "train2017", args.weights, args.iterations), args.out)

    log = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    evaluations = [e for e in log if e["kind"] == "eval"]
    passed = next((e for e in evaluations if e["keypoints"]["AP"] > GOAL), None)
    people = [a for a in json.loads(annotations.read_text())["annotations"] if not a["iscrowd"]]
    result = {
        "images": NUM_IMAGES,
        "people": len(people),
        "people_with_key_points": sum(a["num_keypoints"] > 0 for a in people),
        "visible_key_points": sum(a["num_keypoints"] for a in people),
        "goal_keypoint_ap": GOAL,
        "passed_at": passed
        and {"iteration": passed["iteration"], "training_minutes": passed["seconds"] / 60},
        "curve": [
            {
                "iteration": e["iteration"],
                "minutes": e["seconds"] / 60,
                "box_ap": e["bbox"]["AP"],
                "keypoint_ap": e["keypoints"]["AP"],
            }
            for e in evaluations
        ],
        "processor_minutes": time.process_time() / 60,
        "load": os.getloadavg()[2],
        "machine": "2-core x86-64, bf16 autocast",
    }
    write_atomic(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["passed_at"]))


if __name__ == "__main__":
    main()
