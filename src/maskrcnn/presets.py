"""Named recipes: each a function that returns a fresh config, most of them a few lines over another.

Names are the published ones. Every preset has a tiny variant, `get(name, tiny=True)`, with the same structure and
few channels, for tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from maskrcnn.config import (
    AugmentConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    FPNConfig,
    InputConfig,
    MaskHeadConfig,
    MobileNetV2Config,
    ModelConfig,
    OptimConfig,
    ResNetConfig,
    RPNConfig,
    TrainConfig,
)
from maskrcnn.errors import UserError, did_you_mean


def mask_rcnn_R_50_FPN_1x() -> Config:
    """detectron2's baseline: 90,000 iterations of 16 images, SGD 0.02, divided by 10 at 60,000 and 80,000.

    torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model mask_rcnn_R_50_FPN_1x --out run
    Published: box AP 38.6, mask AP 35.2; 0.261 s an iteration on 8 V100, 6.5 hours.
    """
    return Config(
        model=ModelConfig(name="mask_rcnn_R_50_FPN_1x"),
        data=DataConfig(batch_size=16),
        optim=OptimConfig(lr=0.02, milestones=(60_000, 80_000)),
        train=TrainConfig(iterations=90_000),
    )


def mask_rcnn_R_50_FPN_3x() -> Config:
    """The same for 270,000 iterations, divided by 10 at 210,000 and 250,000.

    Published: box AP 41.0, mask AP 37.2; 19.6 hours on 8 V100.
    """
    config = mask_rcnn_R_50_FPN_1x()
    config.model.name = "mask_rcnn_R_50_FPN_3x"
    config.optim.milestones = (210_000, 250_000)
    config.train.iterations = 270_000
    return config


def mask_rcnn_mobilenet_v2_FPN() -> Config:
    """A small model for machines without a GPU: MobileNetV2, a pyramid of 128 channels, light heads, AdamW.

    maskrcnn train --data my_images/ --model mask_rcnn_mobilenet_v2_FPN --weights mobilenet_v2_imagenet.pt --out run
    Starts from torchvision-named ImageNet weights for inputs in -1..1, with frozen batch normalisation.
    """
    return Config(
        model=ModelConfig(
            name="mask_rcnn_mobilenet_v2_FPN",
            input=InputConfig(
                pixel_mean=(127.5, 127.5, 127.5),
                pixel_std=(127.5, 127.5, 127.5),
                channel_order="RGB",
                min_size=512,
                max_size=853,
            ),
            backbone=MobileNetV2Config(frozen_stages=1),
            fpn=FPNConfig(out_channels=128),
            box_head=BoxHeadConfig(fc_channels=512, num_samples=256),
            mask_head=MaskHeadConfig(conv_channels=128),
        ),
        data=DataConfig(
            batch_size=4, augment=AugmentConfig(min_sizes=(416, 448, 480, 512, 544, 576, 608), max_size=1024)
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=3e-4,
            reference_batch_size=4,
            weight_decay=0.05,
            schedule="cosine",
            warmup_iterations=100,
            clip_grad_norm=10.0,
        ),
        train=TrainConfig(iterations=5000, precision="bf16", evaluate_every=500, checkpoint_every=500),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f for f in (mask_rcnn_R_50_FPN_1x, mask_rcnn_R_50_FPN_3x, mask_rcnn_mobilenet_v2_FPN)
}


def get(name: str, *, tiny: bool = False) -> Config:
    """The config of a preset.

    Raises:
        UserError: no such preset; the message has the nearest names.
    """
    if name not in PRESETS:
        raise UserError(f"model {name!r}: no such preset. {did_you_mean(name, PRESETS)}".rstrip())
    config = PRESETS[name]()
    return shrink(config) if tiny else config


def shrink(config: Config) -> Config:
    """The same structure with few channels and small images."""
    config = copy.deepcopy(config)
    model = config.model
    if isinstance(model.backbone, ResNetConfig):
        model.backbone.depth = 50 if model.backbone.depth >= 50 else 18
        model.backbone.width = 0.125
    else:
        model.backbone.width = 0.125
    model.fpn.out_channels = 16
    model.rpn = RPNConfig(
        anchor_sizes=((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)),
        pre_nms_topk_train=200,
        pre_nms_topk_test=100,
        post_nms_topk_train=100,
        post_nms_topk_test=50,
        num_samples=64,
    )
    model.box_head.fc_channels = 32
    model.box_head.conv_channels = 16
    model.box_head.num_samples = 32
    model.mask_head.conv_channels = 16
    model.input.min_size, model.input.max_size = 96, 160
    config.data.augment.min_sizes, config.data.augment.max_size = (80, 96), 160
    return config
