"""Settings that the models made with MMDetection 2.x share: their heads and their training recipe.

The heads are the same as everywhere; these are the details in which MMDetection's differ from detectron2's.

Where training is not the original's to the last detail: boxes that a crop cuts become tight around what is left of
their masks (there: are cut); masks are read from the picture's own pixels (there: resized to the network's by the
nearest pixel first); losses are normalised over all processes (there: over each by itself).
"""

from __future__ import annotations

from maskrcnn.config import (
    AugmentConfig,
    BackboneConfig,
    BoxHeadConfig,
    CascadeConfig,
    Config,
    DataConfig,
    FPNConfig,
    InputConfig,
    ModelConfig,
    OptimConfig,
    RPNConfig,
    RulesConfig,
    TrainConfig,
)

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB
IMAGENET_STD = (58.395, 57.12, 57.375)
ITERATIONS_PER_EPOCH = 7330  # COCO train2017's 117,266 images with objects, 16 at a time


def mmdetection_model(
    name: str,
    backbone: BackboneConfig,
    *,
    top_down: bool = True,
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
    pixel_std: tuple[float, float, float] = IMAGENET_STD,
) -> ModelConfig:
    """MMDetection's Mask R-CNN on `backbone`; without `top_down`, on the backbone's maps as they are (no pyramid)."""
    # log2(sqrt(area) / 56 + 1e-6), in detectron2's form log2(sqrt(area) / 224 + x).
    level_epsilon = 1e-6 / 4
    return ModelConfig(
        name=name,
        input=InputConfig(pixel_mean=pixel_mean, pixel_std=pixel_std, channel_order="RGB", resize="opencv"),
        backbone=backbone,
        fpn=FPNConfig(top_down=top_down),
        rules=RulesConfig(
            iou_best=0.3,
            best_reassigns=True,
            limit_shrinking=True,
            normalize_by="sampled",
            ignore_padding=True,
            nms_in_original=True,
            level_epsilon=level_epsilon,
            mask_targets="bitmaps",
        ),
    )


def mmdetection_cascade(model: ModelConfig) -> ModelConfig:
    """Turn MMDetection's Mask R-CNN into its cascade: three box heads of four convolutions and a layer, which learn
    from the GIoU of decoded boxes, and three mask heads.
    """
    model.box_head = BoxHeadConfig(
        num_convs=4,
        num_fcs=1,
        norm="sync_bn",
        box_loss="giou",
        box_loss_weight=10.0,
        cascade=CascadeConfig(
            rules="mmdetection",
            loss_weights=(1.0, 0.5, 0.25),
            # Deviations of 0.033 and 0.067 there, where detectron2 has 1 / 30 and 1 / 15.
            box_weights=(
                (10.0, 10.0, 5.0, 5.0),
                (20.0, 20.0, 10.0, 10.0),
                (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067),
            ),
        ),
    )
    model.rpn = RPNConfig(smooth_l1_beta=1 / 9, post_nms_topk_train=2000)
    model.rules.ignore_crossing = True
    return model


def mmdetection_recipe(
    model: ModelConfig, *, epochs: int, augment: AugmentConfig, optim: OptimConfig | None = None
) -> Config:
    """MMDetection's recipe: 12 epochs (1x) or 36 (3x) of COCO, 16 images a step, AdamW; a tenth of the rate at two
    thirds to three quarters of the run and again near its end.

    optim: the rate and the decay, and the schedule where it has no steps; the optimiser is set here.
    """
    optim = optim or OptimConfig(lr=1e-4, weight_decay=0.05)
    optim.optimizer = "adamw"
    if optim.schedule == "step":
        milestones = {12: (8, 11), 36: (27, 33)}[epochs]
        optim.milestones = tuple(e * ITERATIONS_PER_EPOCH for e in milestones)
        optim.warmup_iterations = 500
    return Config(
        model=model,
        data=DataConfig(batch_size=16, augment=augment),
        optim=optim,
        train=TrainConfig(iterations=epochs * ITERATIONS_PER_EPOCH),
    )


def one_scale() -> AugmentConfig:
    """Augmentation of the 1x recipe: shortest side 800, mirrored half of the time."""
    return AugmentConfig(min_sizes=(800,), antialias=False)


def multi_scale() -> AugmentConfig:
    """Augmentation of the 3x recipe: mirrored half of the time, shortest side 480 to 800, half of the time after a
    crop of 384 to 600 pixels a side (DETR's augmentation).
    """
    return AugmentConfig(
        min_sizes=tuple(range(480, 801, 32)),
        antialias=False,
        zoom_sizes=(400, 500, 600),
        zoom_crop=(384, 600),
    )
