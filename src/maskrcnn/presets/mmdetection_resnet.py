"""MMDetection's own Mask and Cascade Mask R-CNNs on ResNet and ResNeXt, by its names.

All begin from ImageNet weights of PyTorch's kind, and are trained by the same command:

    torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --weights resnet50.pth --out run

AP is COCO val2017's: box / mask. The originals train the scale and shift of batch normalisations, whose statistics are
frozen; here both are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from maskrcnn.config import Config, DataConfig, OptimConfig, ResNetConfig, TrainConfig
from maskrcnn.presets.mmdetection import (
    ITERATIONS_PER_EPOCH,
    mmdetection_cascade,
    mmdetection_model,
    one_scale,
)

BODIES: dict[str, Callable[[], ResNetConfig]] = {
    "r50": partial(ResNetConfig, stride_in_1x1=False),
    "r101": partial(ResNetConfig, depth=101, stride_in_1x1=False),
    "x101_32x4d": partial(ResNetConfig, depth=101, stride_in_1x1=False, groups=32, width_per_group=4),
    "x101_64x4d": partial(ResNetConfig, depth=101, stride_in_1x1=False, groups=64, width_per_group=4),
}
SCHEDULES = {
    "1x": (12, (8, 11)),
    "2x": (24, (16, 22)),
    "20e": (20, (16, 19)),
}  # epochs; a tenth of the rate from these


def mask_rcnn(body: str, schedule: str) -> Config:
    """Mask R-CNN with a pyramid: SGD 0.02, 16 images of shortest side 800 an iteration, mirrored half of the time."""
    epochs, milestones = SCHEDULES[schedule]
    return Config(
        model=mmdetection_model(f"mask_rcnn_{body}_fpn_{schedule}_coco", BODIES[body]()),
        data=DataConfig(batch_size=16, augment=one_scale()),
        optim=OptimConfig(
            lr=0.02, milestones=tuple(e * ITERATIONS_PER_EPOCH for e in milestones), warmup_iterations=500
        ),
        train=TrainConfig(iterations=epochs * ITERATIONS_PER_EPOCH),
    )


def cascade_mask_rcnn(body: str, schedule: str) -> Config:
    """Cascade of heads with two layers each, and one box for all classes."""
    config = mask_rcnn(body, schedule)
    model = mmdetection_cascade(config.model)
    model.name = f"cascade_{model.name}"
    head = model.box_head
    head.num_convs, head.num_fcs, head.norm = 0, 2, "none"
    head.class_agnostic = True
    head.box_loss, head.box_loss_weight, head.smooth_l1_beta = "smooth_l1", 1.0, 1.0
    return config


PRESETS: dict[str, Callable[[], Config]] = {
    **{
        f"mask_rcnn_{body}_fpn_{schedule}_coco": partial(mask_rcnn, body, schedule)
        for body in BODIES
        for schedule in ("1x", "2x")
    },
    **{
        f"cascade_mask_rcnn_{body}_fpn_{schedule}_coco": partial(cascade_mask_rcnn, body, schedule)
        for body, schedules in (
            ("r50", ("1x", "20e")),
            ("r101", ("1x", "20e")),
            ("x101_32x4d", ("1x",)),
            ("x101_64x4d", ("1x",)),
        )
        for schedule in schedules
    },
}
