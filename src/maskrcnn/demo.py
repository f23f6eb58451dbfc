"""Demonstration of the main job: a data set, a model trained on it from scratch, its scores and pictures on one page.

Without a data set of one's own it makes a synthetic one. Needs no download and no GPU. Everything lands in one
folder: `data/` (what was made), `run/` (the training run, which `maskrcnn predict --model OUT/run` takes) and
`report.html`.

On 2 cores the default takes about 4 minutes, most of it training. The training follows the clock, so that a
slower machine takes fewer steps, not more time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.config import (
    AugmentConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    FPNConfig,
    InputConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimConfig,
    ResNetConfig,
    RPNConfig,
    TrainConfig,
    from_file,
)
from maskrcnn.errors import UserError
from maskrcnn.files import check_writable_folder, write_atomic

NAME = "demo"
SIZE = (160, 224)
NUM_TRAIN, NUM_VAL = 1000, 60
NUM_PANELS = 12
VAL_FRACTION = 0.2  # of a data set that comes without a validation part
MAX_VAL = 100  # images that are evaluated, so that a large data set of one's own does not take the time

Say = Callable[[str], object]


@dataclass(frozen=True)
class DemoResult:
    """Result of a demo: the page, the scores on unseen images, and the time that all of it took."""

    page: Path
    box_ap: float
    mask_ap: float
    seconds: float


def demo(
    out: str | Path,
    data: str | Path | None = None,
    *,
    minutes: float = 3.5,
    seed: int = 0,
    say: Say = print,
) -> DemoResult:
    """Run the job into the folder `out`; a demo that is there already is replaced.

    Args:
        data: a COCO data set of one's own, a folder or a JSON; None makes the synthetic one.
        minutes: of training, at most.

    Raises:
        UserError: the folder holds something else or cannot be written; the data set cannot be used.
    """
    from maskrcnn.report import write_report
    from maskrcnn.training.train import train

    if not minutes > 0:
        raise UserError(f"--minutes: expected more than 0, got {minutes:g}.")
    clock = _Clock()
    out = _claim(Path(out))
    config = recipe(minutes=minutes, seed=seed)
    if data is None:
        _synthetic(out / "data", config, say)
    else:
        _own(Path(data), out / "data", config)
    clock.lap("data")

    result = train(config, out / "run")
    clock.lap("training")
    in_training = _evaluation_seconds(out / "run" / "log.jsonl")
    clock.move(in_training, "training", "evaluations on the way")

    say("scoring and drawing unseen images")
    scores, panels = _look(out / "run", config)
    clock.lap("scores and pictures")
    box_ap, mask_ap = (scores.numbers[kind]["AP"] for kind in ("bbox", "segm"))
    page = write_report(
        out / "report.html",
        out / "run" / "log.jsonl",
        scores,
        panels,
        title="Mask R-CNN, trained from scratch" if data is None else f"Mask R-CNN on {Path(data).name}",
        lead=_lead(config, result.iterations, result.seconds, synthetic=data is None),
        times=clock.laps,
    )
    say(f"box AP {box_ap:.3f}, mask AP {mask_ap:.3f} on unseen images, in {sum(clock.laps.values()):.0f} s")
    say(f"page: {page.resolve()}")
    return DemoResult(page, box_ap, mask_ap, sum(clock.laps.values()))


def recipe(*, minutes: float, seed: int, min_size: int = SIZE[0]) -> Config:
    """A narrow ResNet-18 FPN for images of about `min_size` pixels on the shorter side, from random weights.

    Batch normalisation: the batches are small, but every image has thousands of places. Anchors follow the
    image size. The rate follows the clock when the steps do not fit into the minutes.
    """
    scale = min_size / SIZE[0]
    sides = [round(side * scale) for side in (18, 32, 56, 88, 128)]
    max_size = round(min_size * 1.6)
    iterations = 1400
    return Config(
        model=ModelConfig(
            name=NAME,
            input=InputConfig(
                pixel_mean=(127.5, 127.5, 127.5),
                pixel_std=(64.0, 64.0, 64.0),
                channel_order="RGB",
                min_size=min_size,
                max_size=max_size,
            ),
            backbone=ResNetConfig(depth=18, width=0.5, norm="bn", frozen_stages=0, stride_in_1x1=False),
            fpn=FPNConfig(out_channels=64, norm="bn"),
            rpn=RPNConfig(
                anchor_sizes=tuple((float(side),) for side in sides),
                num_samples=128,
                pre_nms_topk_train=300,
                pre_nms_topk_test=300,
                post_nms_topk_train=200,
                post_nms_topk_test=100,
            ),
            box_head=BoxHeadConfig(
                fc_channels=256, num_samples=96, positive_fraction=0.5, class_agnostic=True
            ),
            mask_head=MaskHeadConfig(num_convs=3, conv_channels=64, norm="gn", class_agnostic=True),
        ),
        data=DataConfig(
            batch_size=4,
            num_workers=0,
            augment=AugmentConfig(min_sizes=(min_size,), max_size=max_size, vertical_flip=0.5),
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=1.2e-3,
            reference_batch_size=4,
            weight_decay=0.02,
            schedule="cosine",
            warmup_iterations=50,
            clip_grad_norm=10.0,
        ),
        train=TrainConfig(
            iterations=iterations,
            max_minutes=minutes,
            precision="auto",
            seed=seed,
            ema_decay=0.99,
            log_every=20,
            checkpoint_every=iterations,
            keep_checkpoints=1,
            evaluate_every=iterations // 4,
        ),
    )


# ----------------------------------------------------------------------------------------------- data


def _claim(out: Path) -> Path:
    """Make the folder; an earlier demo in it makes room, anything else stays and is refused."""
    check_writable_folder(out)
    run = out / "run"
    if (run / "config.json").is_file() and from_file(run / "config.json").model.name == NAME:
        shutil.rmtree(run)
    if run.exists() and any(run.iterdir()):
        raise UserError(f"--out {out}: {run} is there and no earlier demo's. Choose another folder.")
    return out


def _synthetic(folder: Path, config: Config, say: Say) -> None:
    from maskrcnn.data.synthetic import make_synthetic

    say(f"making {NUM_TRAIN} pictures to train on and {NUM_VAL} others in {folder}")
    make_synthetic(folder, NUM_TRAIN, NUM_VAL, SIZE, config.train.seed)
    config.data.train = str(folder)


def _own(data: Path, folder: Path, config: Config) -> None:
    """Point the config at a data set of one's own; without a validation part, a fifth of it becomes one."""
    from maskrcnn.data import find_data, read_data, to_coco

    train, val = find_data(data)
    whole = read_data(train)
    sizes, content = whole.sizes, to_coco(whole)
    if val is None:
        parts = split(content, VAL_FRACTION, config.train.seed)
    else:
        parts = content, to_coco(read_data(val, whole.class_names, whole.category_ids))
    parts = parts[0], _first_images(parts[1], MAX_VAL)
    for name, part in zip(("train", "val"), parts, strict=True):
        write_atomic(folder / f"{name}.json", json.dumps(part))
    d = config.data
    d.train, d.train_images = str(folder / "train.json"), str(train.images)
    d.val, d.val_images = str(folder / "val.json"), str((val or train).images)

    shortest = min(max(float(np.median(sizes.min(1))), 160), 320)
    sized = recipe(minutes=1.0, seed=0, min_size=32 * round(shortest / 32))
    config.model, d.augment = sized.model, sized.data.augment
    d.num_workers = 2  # photographs take longer to decode than small pictures


def split(content: dict[str, Any], fraction: float, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A COCO data set in two, whole images each: the rest, and `fraction` of the images, at least one each.

    Raises:
        UserError: fewer than two images.
    """
    images = content["images"]
    if len(images) < 2:
        raise UserError(f"--data: expected at least 2 images, got {len(images)}. Add images.")
    count = min(max(1, round(fraction * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    rest = [image for i, image in enumerate(images) if i not in chosen]
    return _only(content, rest), _only(content, [images[i] for i in sorted(chosen)])


def _first_images(content: dict[str, Any], count: int) -> dict[str, Any]:
    return content if len(content["images"]) <= count else _only(content, content["images"][:count])


def _only(content: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    ids = {image["id"] for image in images}
    annotations = [a for a in content.get("annotations", ()) if a.get("image_id") in ids]
    return content | {"images": images, "annotations": annotations}


# ---------------------------------------------------------------------------------------------- looks


def _look(run: Path, config: Config) -> tuple[Any, list[Any]]:
    """Evaluate on the validation images, and draw pictures of the first few of them, none left out."""
    from maskrcnn import zoo
    from maskrcnn.charts import Curve
    from maskrcnn.evaluation.inference import run_inference
    from maskrcnn.evaluation.scores import RECALL_LEVELS, evaluate_results
    from maskrcnn.images.read import read_image
    from maskrcnn.report import Panel, Scores
    from maskrcnn.training.train import open_data

    _, data = open_data(config.data, lambda text: None, config.model)
    assert data is not None
    model = zoo.load(run, precision=config.train.precision)
    result = evaluate_results(data.json_path, run_inference(model, data), ("bbox", "segm"))
    per_class = {
        name: {kind: rows[name]["AP"] for kind, rows in result.per_class.items()}
        for name in result.per_class["segm"]
    }
    mask = result.kinds["segm"]
    present = sorted(mask.per_class, key=lambda name: -mask.per_class[name]["objects"])[:8]
    curves = [
        Curve(name, RECALL_LEVELS.tolist(), mask.class_curve(name).tolist())
        for name in present
        if mask.per_class[name]["objects"]
    ]
    panels = []
    for i in range(min(NUM_PANELS, data.num_images)):
        path = data.image_path(i)
        truth = data.ground_truth(i).draw(read_image(path), data.class_names)
        panels.append(Panel(truth, model.predict(path).draw(), data.file_name(i)))
    return Scores(result.numbers, per_class, curves), panels


def _lead(config: Config, steps: int, seconds: float, *, synthetic: bool) -> str:
    from maskrcnn.report.run import duration

    kind = f"{NUM_TRAIN} synthetic pictures" if synthetic else "your images"
    return (
        f"A ResNet-18 FPN of half width, trained from random weights on {kind} in {steps:,} steps of "
        f"{config.data.batch_size} images and {duration(seconds)}, and shown here on images it has never seen."
    )


def _evaluation_seconds(log_path: Path) -> float:
    from maskrcnn.training.runlog import read_log

    return sum(entry["took"] for entry in read_log(log_path) if entry["kind"] == "eval")


class _Clock:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now

    def move(self, seconds: float, source: str, target: str) -> None:
        self.laps[source] -= seconds
        self.laps[target] = seconds
