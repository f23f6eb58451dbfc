"""Models of detectron2's zoo, by its names.

Every one is trained by the same command, on 8 V100 where hours are given (published figures):

    torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --weights R-50.pkl --out run

`--weights` is the ImageNet backbone that the docstring names, from detectron2's table of pretrained models. AP is
COCO val2017's: box / mask, or box / key points.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import (
    BoxHeadConfig,
    CascadeConfig,
    Config,
    DataConfig,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimConfig,
    RegNetConfig,
    ResNetConfig,
    RPNConfig,
    TrainConfig,
)

# ---------------------------------------------------------------------------------------------------
# Feature pyramids


def mask_rcnn_R_50_FPN_1x() -> Config:
    """detectron2's baseline: 90,000 iterations of 16 images, SGD 0.02, divided by 10 at 60,000 and 80,000.

    R-50.pkl. Published: 38.6 / 35.2; 0.261 s an iteration, 6.5 hours.
    """
    return Config(
        model=ModelConfig(name="mask_rcnn_R_50_FPN_1x"),
        data=DataConfig(batch_size=16),
        optim=OptimConfig(lr=0.02, milestones=(60_000, 80_000)),
        train=TrainConfig(iterations=90_000),
    )


def mask_rcnn_R_50_FPN_3x() -> Config:
    """detectron2's baseline for 270,000 iterations, divided by 10 at 210,000 and 250,000.

    R-50.pkl. Published: 41.0 / 37.2; 0.261 s an iteration, 19.6 hours.
    """
    return _three_times(_named("mask_rcnn_R_50_FPN_3x", mask_rcnn_R_50_FPN_1x()))


def mask_rcnn_R_101_FPN_3x() -> Config:
    """R-101.pkl. Published: 42.9 / 38.6; 0.340 s an iteration, 25.5 hours."""
    return _depth(101, _named("mask_rcnn_R_101_FPN_3x", mask_rcnn_R_50_FPN_3x()))


def mask_rcnn_X_101_32x8d_FPN_3x() -> Config:
    """ResNeXt-101. X-101-32x8d.pkl. Published: 44.3 / 39.5; 0.690 s an iteration, 51.8 hours."""
    return _resnext(_named("mask_rcnn_X_101_32x8d_FPN_3x", mask_rcnn_R_50_FPN_3x()))


# ---------------------------------------------------------------------------------------------------
# One map: C4, whose last stage is the head of every RoI, and DC5, whose last stage is dilated


def mask_rcnn_R_50_C4_1x() -> Config:
    """R-50.pkl. Published: 36.8 / 32.2; 0.584 s an iteration, 14.6 hours."""
    config = _one_map(_named("mask_rcnn_R_50_C4_1x", mask_rcnn_R_50_FPN_1x()))
    config.model.backbone = ResNetConfig(last_stage="res4")
    config.model.box_head = BoxHeadConfig(num_fcs=0)
    config.model.mask_head = MaskHeadConfig(pool_size=7, num_convs=0)
    return config


def mask_rcnn_R_50_C4_3x() -> Config:
    """R-50.pkl. Published: 39.8 / 34.4; 0.575 s an iteration, 43.1 hours."""
    return _three_times(_named("mask_rcnn_R_50_C4_3x", mask_rcnn_R_50_C4_1x()))


def mask_rcnn_R_101_C4_3x() -> Config:
    """R-101.pkl. Published: 42.6 / 36.7; 0.652 s an iteration, 48.9 hours."""
    return _depth(101, _named("mask_rcnn_R_101_C4_3x", mask_rcnn_R_50_C4_3x()))


def mask_rcnn_R_50_DC5_1x() -> Config:
    """R-50.pkl. Published: 38.3 / 34.2; 0.471 s an iteration, 11.8 hours."""
    config = _one_map(_named("mask_rcnn_R_50_DC5_1x", mask_rcnn_R_50_FPN_1x()))
    config.model.backbone = ResNetConfig(res5_dilation=2)
    return config


def mask_rcnn_R_50_DC5_3x() -> Config:
    """R-50.pkl. Published: 40.0 / 35.9; 0.470 s an iteration, 35.3 hours."""
    return _three_times(_named("mask_rcnn_R_50_DC5_3x", mask_rcnn_R_50_DC5_1x()))


def mask_rcnn_R_101_DC5_3x() -> Config:
    """R-101.pkl. Published: 41.9 / 37.3; 0.545 s an iteration, 40.9 hours."""
    return _depth(101, _named("mask_rcnn_R_101_DC5_3x", mask_rcnn_R_50_DC5_3x()))


# ---------------------------------------------------------------------------------------------------
# Key points of people


def keypoint_rcnn_R_50_FPN_1x() -> Config:
    """Boxes and 17 key points of people. R-50.pkl. Published: 53.6 / 64.0; 0.315 s an iteration, 7.9 hours."""
    return _of_people(_named("keypoint_rcnn_R_50_FPN_1x", mask_rcnn_R_50_FPN_1x()))


def keypoint_rcnn_R_50_FPN_3x() -> Config:
    """R-50.pkl. Published: 55.4 / 65.5; 0.316 s an iteration, 23.7 hours."""
    return _of_people(_named("keypoint_rcnn_R_50_FPN_3x", mask_rcnn_R_50_FPN_3x()))


def keypoint_rcnn_R_101_FPN_3x() -> Config:
    """R-101.pkl. Published: 56.4 / 66.1; 0.390 s an iteration, 29.3 hours."""
    return _of_people(_named("keypoint_rcnn_R_101_FPN_3x", mask_rcnn_R_101_FPN_3x()))


def keypoint_rcnn_X_101_32x8d_FPN_3x() -> Config:
    """X-101-32x8d.pkl. Published: 57.3 / 66.0; 0.738 s an iteration, 55.4 hours."""
    return _of_people(_named("keypoint_rcnn_X_101_32x8d_FPN_3x", mask_rcnn_X_101_32x8d_FPN_3x()))


# ---------------------------------------------------------------------------------------------------
# Cascades


def cascade_mask_rcnn_R_50_FPN_1x() -> Config:
    """Three box heads, one after the other. R-50.pkl. Published: 42.1 / 36.4; 0.317 s an iteration, 7.9 hours."""
    config = _named("cascade_mask_rcnn_R_50_FPN_1x", mask_rcnn_R_50_FPN_1x())
    config.model.rpn.post_nms_topk_train = 2000
    config.model.box_head = BoxHeadConfig(class_agnostic=True, cascade=CascadeConfig())
    return config


def cascade_mask_rcnn_R_50_FPN_3x() -> Config:
    """R-50.pkl. Published: 44.3 / 38.5; 0.328 s an iteration, 24.6 hours."""
    return _three_times(_named("cascade_mask_rcnn_R_50_FPN_3x", cascade_mask_rcnn_R_50_FPN_1x()))


def cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv() -> Config:
    """Largest model of the zoo: a cascade on ResNeXt-152 with deformable convolutions, group normalisation in the
    heads.

    X-152-32x8d-IN5k.pkl. Published: 50.2 / 44.0, 51.9 / 45.9 with test-time augmentation; 128 images an iteration.
    Each training image is cropped to a window of 90 % to 100 % of its height and width.
    """
    config = cascade_mask_rcnn_R_50_FPN_1x()
    config.model.name = "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv"
    config.model.backbone = ResNetConfig(
        depth=152, groups=32, width_per_group=8, stride_in_1x1=False, deformable_stages=(3, 4, 5)
    )
    _convolutional_heads(config, "gn")
    config.model.mask_head = MaskHeadConfig(num_convs=8, norm="gn")
    config.data.batch_size = 128
    config.data.augment.min_sizes = tuple(range(640, 865))
    config.data.augment.max_size = 1440
    config.data.augment.window_share = (0.9, 1.0)
    config.optim.lr, config.optim.reference_batch_size = 0.16, 128
    config.optim.milestones = (35_000, 45_000)
    config.train.iterations = 50_000
    return config


# ---------------------------------------------------------------------------------------------------
# Deformable convolutions and other normalisations


def mask_rcnn_R_50_FPN_1x_dconv_c3_c5() -> Config:
    """Deformable convolutions in res3 to res5. R-50.pkl. Published: 41.5 / 37.5; 0.342 s an iteration, 8.6 hours."""
    config = _named("mask_rcnn_R_50_FPN_1x_dconv_c3-c5", mask_rcnn_R_50_FPN_1x())
    config.model.backbone = ResNetConfig(deformable_stages=(3, 4, 5))
    return config


def mask_rcnn_R_50_FPN_3x_dconv_c3_c5() -> Config:
    """R-50.pkl. Published: 42.7 / 38.5; 0.349 s an iteration, 26.2 hours."""
    return _three_times(_named("mask_rcnn_R_50_FPN_3x_dconv_c3-c5", mask_rcnn_R_50_FPN_1x_dconv_c3_c5()))


def mask_rcnn_R_50_FPN_3x_gn() -> Config:
    """Group normalisation everywhere. R-50-GN.pkl. Published: 42.6 / 38.6; 0.356 s an iteration, 26.7 hours."""
    config = _named("mask_rcnn_R_50_FPN_3x_gn", mask_rcnn_R_50_FPN_3x())
    config.model.backbone = ResNetConfig(norm="gn", stride_in_1x1=False)
    config.model.fpn = FPNConfig(norm="gn")
    return _convolutional_heads(config, "gn")


def scratch_mask_rcnn_R_50_FPN_3x_gn() -> Config:
    """Group normalisation everywhere, from random weights, nothing frozen. Published: 39.9 / 36.6; 0.400 s an
    iteration, 30.0 hours.
    """
    config = _named("scratch_mask_rcnn_R_50_FPN_3x_gn", mask_rcnn_R_50_FPN_3x_gn())
    config.model.backbone = ResNetConfig(norm="gn", stride_in_1x1=False, frozen_stages=0)
    return config


def scratch_mask_rcnn_R_50_FPN_9x_gn() -> Config:
    """Group normalisation from random weights for long (He et al. 2018, arXiv 1811.08883): 64 images an iteration,
    inputs divided by their spread. Published: 43.7 / 39.6.
    """
    return _nine_times(_named("scratch_mask_rcnn_R_50_FPN_9x_gn", mask_rcnn_R_50_FPN_3x_gn()))


def scratch_mask_rcnn_R_50_FPN_9x_syncbn() -> Config:
    """Batch normalisation over all processes, else as the one with group normalisation. Published: 43.6 / 39.3."""
    return _nine_times(_named("scratch_mask_rcnn_R_50_FPN_9x_syncbn", mask_rcnn_R_50_FPN_3x_syncbn()))


def mask_rcnn_R_50_FPN_3x_syncbn() -> Config:
    """Batch normalisation over all processes. R-50.pkl. Published: 41.9 / 37.8; 0.371 s an iteration, 27.8 hours.

    Before an evaluation the running statistics are renewed over 200 batches (PreciseBN).
    """
    config = _named("mask_rcnn_R_50_FPN_3x_syncbn", mask_rcnn_R_50_FPN_3x())
    config.model.backbone = ResNetConfig(norm="sync_bn")
    config.model.fpn = FPNConfig(norm="sync_bn")
    config.train.precise_norm_batches = 200
    return _convolutional_heads(config, "sync_bn")


# ---------------------------------------------------------------------------------------------------
# Large-scale jitter, from random weights (Ghiasi et al. 2020, arXiv 2012.07177)


def mask_rcnn_R_50_FPN_100ep_LSJ() -> Config:
    """100 epochs from random weights: 64 images scaled by 0.1 to 2 and cropped to 1024, half precision.

    Published: 44.6 / 40.3; 0.376 s an iteration of 64 images.
    """
    config = _named("mask_rcnn_R_50_FPN_100ep_LSJ", mask_rcnn_R_50_FPN_1x())
    config.model.backbone = ResNetConfig(norm="sync_bn", frozen_stages=0)
    config.model.fpn = FPNConfig(norm="sync_bn")
    config.model.rpn.num_convs = 2
    _convolutional_heads(config, "sync_bn")
    config.data.batch_size = 64
    config.data.augment.jitter_scale = (0.1, 2.0)
    config.data.augment.crop_size = (1024, 1024)
    config.optim.lr, config.optim.reference_batch_size = 0.1, 64
    config.optim.weight_decay = 4e-5
    config.optim.warmup_iterations, config.optim.warmup_factor = 500, 0.067
    config.optim.milestones = (163_889, 177_546)
    config.train.iterations = 184_375
    config.train.precision = "fp16"
    return config


def mask_rcnn_R_50_FPN_200ep_LSJ() -> Config:
    """R-50-FPN for 200 epochs. Published: 46.3 / 41.7."""
    return _longer(2, _named("mask_rcnn_R_50_FPN_200ep_LSJ", mask_rcnn_R_50_FPN_100ep_LSJ()))


def mask_rcnn_R_50_FPN_400ep_LSJ() -> Config:
    """R-50-FPN for 400 epochs. Published: 47.4 / 42.5."""
    return _longer(4, _named("mask_rcnn_R_50_FPN_400ep_LSJ", mask_rcnn_R_50_FPN_100ep_LSJ()))


def mask_rcnn_R_101_FPN_100ep_LSJ() -> Config:
    """R-101-FPN for 100 epochs. Published: 46.4 / 41.6."""
    return _depth(101, _named("mask_rcnn_R_101_FPN_100ep_LSJ", mask_rcnn_R_50_FPN_100ep_LSJ()))


def mask_rcnn_R_101_FPN_200ep_LSJ() -> Config:
    """R-101-FPN for 200 epochs. Published: 48.0 / 43.1."""
    return _depth(101, _named("mask_rcnn_R_101_FPN_200ep_LSJ", mask_rcnn_R_50_FPN_200ep_LSJ()))


def mask_rcnn_R_101_FPN_400ep_LSJ() -> Config:
    """R-101-FPN for 400 epochs. Published: 48.9 / 43.7."""
    return _depth(101, _named("mask_rcnn_R_101_FPN_400ep_LSJ", mask_rcnn_R_50_FPN_400ep_LSJ()))


def mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ() -> Config:
    """RegNetX-4GF for 100 epochs. Published: 46.0 / 41.3."""
    return _regnet(
        RegNetConfig(), _named("mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ", mask_rcnn_R_50_FPN_100ep_LSJ())
    )


def mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ() -> Config:
    """RegNetX-4GF for 200 epochs. Published: 48.1 / 43.1."""
    return _longer(
        2, _named("mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ", mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ())
    )


def mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ() -> Config:
    """RegNetX-4GF for 400 epochs. Published: 48.6 / 43.5."""
    return _longer(
        4, _named("mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ", mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ())
    )


def mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ() -> Config:
    """RegNetY-4GF for 100 epochs. Published: 46.1 / 41.6."""
    backbone = RegNetConfig(widths=(128, 192, 512, 1088), depths=(2, 6, 12, 2), group_width=64, squeeze=0.25)
    return _regnet(
        backbone, _named("mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ", mask_rcnn_R_50_FPN_100ep_LSJ())
    )


def mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ() -> Config:
    """RegNetY-4GF for 200 epochs. Published: 47.8 / 43.0."""
    return _longer(
        2, _named("mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ", mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ())
    )


def mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ() -> Config:
    """RegNetY-4GF for 400 epochs. Published: 48.2 / 43.3."""
    return _longer(
        4, _named("mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ", mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ())
    )


# ---------------------------------------------------------------------------------------------------
# What several of them change


def _named(name: str, config: Config) -> Config:
    config.model.name = name
    return config


def _three_times(config: Config) -> Config:
    """Apply the 3x schedule, which trains for its first rate longer than three times as long."""
    config.optim.milestones = (210_000, 250_000)
    config.train.iterations = 270_000
    return config


def _nine_times(config: Config) -> Config:
    """Train from random weights, nothing frozen, for nine times 90,000 iterations of 16 images."""
    assert isinstance(config.model.backbone, ResNetConfig)
    config.model.backbone.stride_in_1x1, config.model.backbone.frozen_stages = False, 0
    config.model.input.pixel_std = (57.375, 57.120, 58.395)
    config.data.batch_size = 64
    config.optim.lr, config.optim.reference_batch_size = 0.08, 64
    config.optim.milestones = (187_500, 197_500)
    config.train.iterations = 202_500
    return config


def _longer(times: int, config: Config) -> Config:
    config.optim.milestones = tuple(times * m for m in config.optim.milestones)
    config.train.iterations *= times
    return config


def _depth(depth: int, config: Config) -> Config:
    assert isinstance(config.model.backbone, ResNetConfig)
    config.model.backbone.depth = depth  # type: ignore[assignment]
    return config


def _resnext(config: Config) -> Config:
    """Set the backbone to ResNeXt-101 32x8d as trained by Caffe2: the stride in the 3x3 convolution, inputs divided
    by their spread.
    """
    config.model.backbone = ResNetConfig(depth=101, groups=32, width_per_group=8, stride_in_1x1=False)
    config.model.input.pixel_std = (57.375, 57.120, 58.395)
    return config


def _regnet(backbone: RegNetConfig, config: Config) -> Config:
    """Set a RegNet as the backbone, whose inputs are divided by their spread."""
    config.model.backbone = backbone
    config.model.input.pixel_std = (57.375, 57.120, 58.395)
    return config


def _one_map(config: Config) -> Config:
    """Remove the pyramid: all anchors on one map of stride 16, and images without padding."""
    config.model.fpn = None
    config.model.input.size_divisor = 1
    config.model.rpn = RPNConfig(
        anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
        pre_nms_topk_train=12_000,
        pre_nms_topk_test=6000,
        post_nms_topk_train=2000,
    )
    return config


def _convolutional_heads(config: Config, norm: str) -> Config:
    """Set four convolutions and one fully connected layer for boxes, and normalisation in both heads."""
    box_head, mask_head = config.model.box_head, config.model.mask_head
    assert mask_head is not None
    box_head.num_convs, box_head.num_fcs = 4, 1
    box_head.norm = mask_head.norm = norm  # type: ignore[assignment]
    return config


def _of_people(config: Config) -> Config:
    """Set one class, and COCO's key points instead of masks. Plain L1 on boxes would cost key-point AP."""
    config.model.num_classes = 1
    config.model.class_names = ("person",)
    config.model.mask_head = None
    config.model.keypoint_head = KeypointHeadConfig(
        names=COCO_KEYPOINTS, flip_pairs=COCO_FLIP_PAIRS, skeleton=COCO_SKELETON
    )
    config.model.rpn.post_nms_topk_train = 1500
    config.model.box_head.smooth_l1_beta = 0.5
    return config


COCO_KEYPOINTS = (
    "nose",
    *(
        f"{side}_{part}"
        for part in ("eye", "ear", "shoulder", "elbow", "wrist")
        for side in ("left", "right")
    ),
    *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
)
COCO_FLIP_PAIRS = tuple((left, left + 1) for left in range(1, 17, 2))
# fmt: off
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12),  # legs and hips
    (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),  # sides, shoulders, arms
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),  # face
)
# fmt: on


PRESETS: dict[str, Callable[[], Config]] = {
    # The published names have a hyphen, which Python's have not.
    f.__name__.replace("c3_c5", "c3-c5"): f
    for f in (
        mask_rcnn_R_50_C4_1x,
        mask_rcnn_R_50_DC5_1x,
        mask_rcnn_R_50_FPN_1x,
        mask_rcnn_R_50_C4_3x,
        mask_rcnn_R_50_DC5_3x,
        mask_rcnn_R_50_FPN_3x,
        mask_rcnn_R_101_C4_3x,
        mask_rcnn_R_101_DC5_3x,
        mask_rcnn_R_101_FPN_3x,
        mask_rcnn_X_101_32x8d_FPN_3x,
        keypoint_rcnn_R_50_FPN_1x,
        keypoint_rcnn_R_50_FPN_3x,
        keypoint_rcnn_R_101_FPN_3x,
        keypoint_rcnn_X_101_32x8d_FPN_3x,
        cascade_mask_rcnn_R_50_FPN_1x,
        cascade_mask_rcnn_R_50_FPN_3x,
        cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv,
        mask_rcnn_R_50_FPN_1x_dconv_c3_c5,
        mask_rcnn_R_50_FPN_3x_dconv_c3_c5,
        mask_rcnn_R_50_FPN_3x_gn,
        mask_rcnn_R_50_FPN_3x_syncbn,
        scratch_mask_rcnn_R_50_FPN_3x_gn,
        scratch_mask_rcnn_R_50_FPN_9x_gn,
        scratch_mask_rcnn_R_50_FPN_9x_syncbn,
        mask_rcnn_R_50_FPN_100ep_LSJ,
        mask_rcnn_R_50_FPN_200ep_LSJ,
        mask_rcnn_R_50_FPN_400ep_LSJ,
        mask_rcnn_R_101_FPN_100ep_LSJ,
        mask_rcnn_R_101_FPN_200ep_LSJ,
        mask_rcnn_R_101_FPN_400ep_LSJ,
        mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ,
        mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ,
        mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ,
        mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ,
        mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ,
        mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ,
    )
}
