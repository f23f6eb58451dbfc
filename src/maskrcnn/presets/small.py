"""Models of our own for machines without a GPU."""

from __future__ import annotations

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
    TrainConfig,
)


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
        train=TrainConfig(iterations=5000, precision="auto", evaluate_every=500, checkpoint_every=500),
    )


PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in (mask_rcnn_mobilenet_v2_FPN,)}
