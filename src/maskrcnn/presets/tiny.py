"""Tiny variant of any preset: its structure with few channels, for tests."""

from __future__ import annotations

import copy
import dataclasses

from maskrcnn.config import Config, InternImageConfig, MobileNetV2Config, ResNetConfig, ViTConfig


def shrink(config: Config) -> Config:
    """Copy of a config, reduced to few channels and small images; its structure stays."""
    config = copy.deepcopy(config)
    model = config.model
    if isinstance(model.backbone, ResNetConfig):
        model.backbone.depth = 50 if model.backbone.depth >= 50 else 18
        model.backbone.width = 0.125
        model.backbone.groups = min(model.backbone.groups, 4)
    elif isinstance(model.backbone, MobileNetV2Config):
        model.backbone.width = 0.125
    elif isinstance(model.backbone, InternImageConfig):
        model.backbone.channels, model.backbone.groups = 16, (2, 4, 8, 16)
        model.backbone.depths = (1, 1, 2, 1)
    elif isinstance(model.backbone, ViTConfig):
        model.backbone = _shrink_vit(model.backbone)
    if model.fpn is not None:
        model.fpn.out_channels = 16
    model.rpn = dataclasses.replace(
        model.rpn,
        anchor_sizes=tuple(tuple(size / 4 for size in sizes) for sizes in model.rpn.anchor_sizes),
        pre_nms_topk_train=200,
        pre_nms_topk_test=100,
        post_nms_topk_train=100,
        post_nms_topk_test=50,
        num_samples=64,
    )
    model.box_head.fc_channels = 32
    model.box_head.conv_channels = 16
    model.box_head.num_samples = 32
    if model.mask_head is not None:
        model.mask_head.conv_channels = 16
    if model.keypoint_head is not None:
        model.keypoint_head.conv_channels = 16
    model.input.min_size, model.input.max_size = 96, 160
    augment = config.data.augment
    augment.min_sizes, augment.max_size = (80, 96), 160
    if augment.zoom_sizes:
        augment.zoom_sizes, augment.zoom_crop = (56, 64), (48, 64)
    return config


def _shrink_vit(vit: ViTConfig) -> ViTConfig:
    """Reduce a ViT to two blocks a quarter, one of windows and a global one, in windows smaller than a picture of
    tests.
    """
    vit = dataclasses.replace(
        vit, dim=32, depth=8, num_heads=2, window_size=4, pretrain_size=64, global_blocks=(1, 3, 5, 7)
    )
    if vit.adapter is not None:
        vit.adapter = dataclasses.replace(
            vit.adapter, conv_channels=8, num_heads=4, interactions=((0, 1), (2, 3), (4, 5), (6, 7))
        )
    return vit
