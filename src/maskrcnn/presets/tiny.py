"""Tiny variant of any preset: its structure with few channels, for tests."""

from __future__ import annotations

import copy
import dataclasses

from maskrcnn.config import Config


def shrink(config: Config) -> Config:
    """Copy of a config, reduced to few channels and small images; its structure stays."""
    config = copy.deepcopy(config)
    model = config.model
    model.backbone = model.backbone.tiny()
    if model.fpn is not None:
        model.fpn.out_channels = 16
    model.rpn = dataclasses.replace(
        model.rpn,
        anchor_sizes=tuple(tuple(size / 4 for size in sizes) for sizes in model.rpn.sizes),
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
    model.input.size_divisor = min(model.input.size_divisor, 32)
    augment = config.data.augment
    augment.min_sizes, augment.max_size = (80, 96), 160
    if augment.zoom_sizes:
        augment.zoom_sizes, augment.zoom_crop = (56, 64), (48, 64)
    return config
