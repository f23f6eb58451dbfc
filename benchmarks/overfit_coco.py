"""Overfit 20 COCO photographs: the proof that 80 classes, crowds and real pictures train.

    python benchmarks/overfit_coco.py --coco ../shared/data/coco --weights mobilenet_v2_imagenet.pt --out runs/overfit

Takes the first 20 training images that make up a set with at least one crowd region, trains the MobileNetV2 model on
them and evaluates on the same images; writes when the mask AP on them first passed 0.8 to
`benchmarks/results/overfit_coco.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from maskrcnn import presets
from maskrcnn.files import write_atomic
from maskrcnn.training.train import train

NUM_IMAGES, GOAL = 20, 0.8
RESULT = Path(__file__).parent / "results" / "overfit_coco.json"


def subset(coco: Path, out: Path) -> Path:
    """A COCO JSON of 20 images: the first with a crowd, then the first others that have objects."""
    full = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    crowded = [a["image_id"] for a in full["annotations"] if a["iscrowd"]]
    with_objects = {a["image_id"] for a in full["annotations"] if not a["iscrowd"]}
    ids = [i for i in crowded[:1] if i in with_objects]
    ids += [i["id"] for i in full["images"] if i["id"] in with_objects and i["id"] not in ids]
    keep = set(ids[:NUM_IMAGES])
    full["images"] = [i for i in full["images"] if i["id"] in keep]
    full["annotations"] = [a for a in full["annotations"] if a["image_id"] in keep]
    path = out.parent / f"{out.name}_20_images.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(full))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(2)

    config = presets.get("mask_rcnn_mobilenet_v2_FPN")
    annotations = subset(args.coco, args.out)
    config.data.train = config.data.val = str(annotations)
    config.data.train_images = config.data.val_images = str(args.coco / "train2017")
    config.data.num_workers = 0
    # Learning by heart: no augmentation, the size of the evaluation.
    config.data.augment.min_sizes, config.data.augment.horizontal_flip = (416,), 0.0
    config.data.augment.max_size = 640
    config.model.input.min_size, config.model.input.max_size = 416, 640
    config.model.box_head.num_samples, config.model.box_head.positive_fraction = 128, 0.5
    config.model.rpn.pre_nms_topk_train, config.model.rpn.post_nms_topk_train = 500, 500
    config.optim.lr = 8e-4
    config.optim.weight_decay = 0.0
    config.train.weights = args.weights
    config.train.iterations = args.iterations
    config.train.evaluate_every = 150
    config.train.checkpoint_every = 300
    train(config, args.out)

    log = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    evaluations = [e for e in log if e["kind"] == "eval"]
    passed = next((e for e in evaluations if e["segm"]["AP"] > GOAL), None)
    objects = json.loads(annotations.read_text())["annotations"]
    result = {
        "images": NUM_IMAGES,
        "objects": sum(not a["iscrowd"] for a in objects),
        "crowds": sum(a["iscrowd"] for a in objects),
        "classes_present": len({a["category_id"] for a in objects}),
        "goal_mask_ap": GOAL,
        "passed_at": passed
        and {"iteration": passed["iteration"], "training_minutes": passed["seconds"] / 60},
        "curve": [
            {
                "iteration": e["iteration"],
                "minutes": e["seconds"] / 60,
                "box_ap": e["bbox"]["AP"],
                "mask_ap": e["segm"]["AP"],
            }
            for e in evaluations
        ],
        "machine": "2-core x86-64, bf16 autocast",
    }
    write_atomic(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["passed_at"]))


if __name__ == "__main__":
    main()
