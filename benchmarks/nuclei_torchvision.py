r"""torchvision's Mask R-CNN on the nuclei, trained by the clock: what ours is compared with.

    python benchmarks/nuclei_torchvision.py --data nuclei --weights mobilenet_v2_imagenet.pt --out runs/torchvision

25 minutes of training on 2 threads by default, and about as long again for evaluations, which do not count.
`--data` has `annotations/{train,val}.json` and the pictures in `train/` and `val/`.

torchvision as people use it: `MaskRCNN` as it comes, float32, its own losses, samplers and operators; a MobileNetV2
FPN of 128 channels (frozen batch normalisation, stem and first block frozen, as in our preset), anchors of 8 to
128 pixels, 400 detections an image. Each step takes four random 256x256 crops, flipped at random; AdamW at 3e-4
with a short warm-up, and a cosine that follows the clock (`--schedule constant` for none). Images keep their own
size, in training and evaluation. All pictures and annotations are read into memory before the clock starts, so
that reading costs it next to nothing.

`OUT/log.jsonl` has the layout of our own runs (`maskrcnn.training.runlog`); `nuclei_compare.py` sets both side by side.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn.data import transforms
from maskrcnn.data.coco import CocoData, read_coco
from maskrcnn.evaluation.scores import evaluate_results
from maskrcnn.files import atomic_path, check_writable_folder
from maskrcnn.images.read import read_image
from maskrcnn.masks.rle import rle_encode
from maskrcnn.training.runlog import RunLog, Stopwatch, Window

CROP = 256
WARMUP_ITERATIONS = 20
MAX_DETECTIONS = 400
# torchvision's name of each loss -> ours
LOSSES = {
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_box_reg",
    "loss_mask": "loss_mask",
}
# The last block of the strides 4, 8, 16 and 32 among MobileNetV2's features.
STAGE_ENDS = (3, 6, 13, 17)

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the nuclei's folder")
    parser.add_argument(
        "--weights", type=Path, help="MobileNetV2's ImageNet weights; without it, random ones"
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder, without a log in it")
    parser.add_argument("--minutes", type=float, default=25.0, help="of training, evaluations apart")
    parser.add_argument("--evaluate-minutes", type=float, default=5.0, help="of training between evaluations")
    parser.add_argument("--evaluate-images", type=int, help="only so many images of val: for trials")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=5, help="iterations")
    args = parser.parse_args()
    if (args.out / "log.jsonl").exists():
        parser.error(f"--out {args.out}: holds a run already. Choose another folder.")
    check_writable_folder(args.out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


def train(args: argparse.Namespace) -> None:
    train_data, val_data = (
        read_coco(args.data / "annotations" / f"{part}.json", args.data / part) for part in ("train", "val")
    )
    if args.evaluate_images:
        val_data = val_data.subset(range(args.evaluate_images))
    model = build(train_data, args.weights).to(args.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr)
    log = RunLog(args.out, resume_at=None)
    log.write(
        "config",
        0,
        config={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=sum(p.numel() for p in trained),
        device=args.device,
        processes=1,
        versions={name: version(name) for name in ("torch", "torchvision")},
    )
    batches = crops(train_data, args.batch_size, args.seed)
    budget, watch, iteration = args.minutes * 60, Stopwatch(), 0
    next_evaluation, window = args.evaluate_minutes * 60, Window(0.0)
    model.train()
    watch.start()
    while watch.seconds < budget:
        rate = args.lr * share_of_rate(iteration, watch.seconds / budget, args.schedule)
        losses = step(model, optimizer, next(batches), rate, args.device)
        iteration += 1
        window.add(losses)
        if not math.isfinite(sum(losses.values())):
            log.write("event", iteration, message=f"a loss is not finite: {losses}")
            raise SystemExit(f"iteration {iteration}: a loss is not finite: {losses}")
        if iteration % args.log_every == 0:
            record(log, iteration, window, watch.seconds, rate, args)
        if min(next_evaluation, budget) <= watch.seconds:
            watch.pause()
            evaluate(model, val_data, log, iteration, watch.seconds, args)
            next_evaluation += args.evaluate_minutes * 60
            watch.start()
    log.write("event", iteration, message=f"{iteration} iterations in {watch.seconds:.0f} s of training")
    log.close()


def build(data: CocoData, weights: Path | None) -> MaskRCNN:
    """torchvision's model for the data set's classes, with MobileNetV2's weights where given."""
    body = mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d)
    if weights is not None:
        body.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    features = body.features[: STAGE_ENDS[-1] + 1]  # what follows is the classifier's
    for parameter in features[:2].parameters():
        parameter.requires_grad_(False)
    channels = [features[i].out_channels for i in STAGE_ENDS]
    backbone = BackboneWithFPN(features, {str(i): str(n) for n, i in enumerate(STAGE_ENDS)}, channels, 128)
    return MaskRCNN(
        backbone,
        num_classes=1 + len(data.category_ids),
        image_mean=[0.5] * 3,  # of 0..1: RGB / 127.5 - 1
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
        box_detections_per_img=MAX_DETECTIONS,
        _skip_resize=True,  # as they are, in training and evaluation
    )


def crops(data: CocoData, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of random crops, each with an object at least; every image once an epoch."""
    rng = np.random.default_rng(seed)
    order = np.flatnonzero(data.num_objects)
    samples = {i: (load_image(data, i), data.ground_truth(i)) for i in order.tolist()}
    print(f"{len(samples)} training images in memory", flush=True)

    def endless() -> Iterator[int]:
        while True:
            yield from rng.permutation(order).tolist()

    def batches() -> Iterator[Batch]:
        numbers = endless()
        while True:
            pairs = [random_crop(*samples[next(numbers)], rng) for _ in range(batch_size)]
            yield [image for image, _ in pairs], [target for _, target in pairs]

    return batches()


def load_image(data: CocoData, i: int) -> Tensor:
    """(3, H, W) uint8 RGB."""
    return torch.from_numpy(np.ascontiguousarray(read_image(data.image_path(i)))).permute(2, 0, 1)


def random_crop(image: Tensor, truth: Any, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """A 256x256 window with an object in it, flipped at random, in torchvision's form."""
    height, width = image.shape[1:]
    size = min(CROP, height), min(CROP, width)
    while True:
        corner = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
        part, inside = transforms.crop(image, truth, corner, size)
        wide = (inside.boxes[:, 2:] - inside.boxes[:, :2] >= transforms.MIN_BOX_SIDE).all(dim=1)
        if wide.any():
            break
    if rng.random() < 0.5:
        part, inside = transforms.flip_horizontal(part, inside)
    if rng.random() < 0.5:
        part, inside = transforms.flip_vertical(part, inside)
    masks = inside.masks.select(wide.numpy()).to_bitmaps(size)
    target = {
        "boxes": inside.boxes[wide],
        "labels": inside.labels[wide] + 1,  # torchvision's 0 is the background
        "masks": torch.from_numpy(masks),
    }
    return part.contiguous().float() / 255, target


def share_of_rate(iteration: int, progress: float, schedule: str) -> float:
    warm = min(1.0, (iteration + 1) / WARMUP_ITERATIONS)
    return warm if schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def step(
    model: MaskRCNN, optimizer: torch.optim.Optimizer, batch: Batch, rate: float, device: str
) -> dict[str, float]:
    """One update; the losses under our names."""
    images, targets = batch
    losses = model(
        [image.to(device) for image in images],
        [{name: value.to(device) for name, value in target.items()} for target in targets],
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    return {ours: float(losses[theirs].detach()) for theirs, ours in LOSSES.items()}


def record(
    log: RunLog, iteration: int, window: Window, seconds: float, rate: float, args: argparse.Namespace
) -> None:
    losses, took = window.close(seconds)
    loss, speed = sum(losses.values()), args.batch_size / took
    log.write("train", iteration, losses=losses, loss=loss, lr=rate, images_per_second=speed, seconds=seconds)
    terms = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
    print(
        f"{iteration}  {seconds / 60:.1f} of {args.minutes:g} min  loss {loss:.3f}  {terms}  {speed:.2f} images/s",
        flush=True,
    )


def evaluate(
    model: MaskRCNN, data: CocoData, log: RunLog, iteration: int, seconds: float, args: argparse.Namespace
) -> None:
    """COCO's numbers on `data` to the log, and the weights to OUT/model.pt."""
    started = time.monotonic()
    with atomic_path(args.out / "model.pt") as temporary:
        torch.save(model.state_dict(), temporary)
    results = detect(model, data, args.device)
    scored = evaluate_results(truth_of(data), results, ("bbox", "segm"), max_detections=MAX_DETECTIONS)
    found, took = scored.numbers, time.monotonic() - started
    best = all(found["segm"]["AP"] > e["segm"]["AP"] for e in log.evaluations)
    log.write("eval", iteration, **found, seconds=seconds, best=best, took=took)
    box, mask = found["bbox"], found["segm"]
    print(
        f"{iteration}  {seconds / 60:.1f} min: box AP {box['AP']:.3f}  mask AP {mask['AP']:.3f}  "
        f"AP50 {mask['AP50']:.3f}  AP75 {mask['AP75']:.3f}  ({len(results)} detections, {took:.0f} s)",
        flush=True,
    )


@torch.inference_mode()
def detect(model: nn.Module, data: CocoData, device: str) -> list[dict[str, Any]]:
    """COCO results with masks of 0.5 and more, image by image."""
    model.eval()
    results: list[dict[str, Any]] = []
    for i in range(data.num_images):
        (found,) = model([load_image(data, i).to(device).float() / 255])
        x0, y0, x1, y1 = found["boxes"].double().cpu().unbind(1)
        boxes = torch.stack([x0, y0, x1 - x0, y1 - y0], dim=1).tolist()
        masks = (found["masks"][:, 0] >= 0.5).cpu().numpy()
        for box, label, score, mask in zip(
            boxes, found["labels"].tolist(), found["scores"].tolist(), masks, strict=True
        ):
            results.append(
                {
                    "image_id": data.image_ids[i].item(),
                    "category_id": data.category_ids[label - 1],
                    "bbox": box,
                    "score": score,
                    "segmentation": rle_encode(mask),
                }
            )
    model.train()
    return results


def truth_of(data: CocoData) -> Any:
    """The JSON, or the part of it with the images of a subset."""
    import json

    content = json.loads(data.json_path.read_text(encoding="utf-8"))
    kept = set(data.image_ids.tolist())
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    return content


if __name__ == "__main__":
    main()
