"""InternImage's Mask R-CNNs and Cascade Mask R-CNNs, by their published names.

torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --weights internimage_t_1k_224.pth --out run

starts from the classification weights of the same size (T, S, B; ImageNet-1K, 224 pixels). AdamW, no clipping, no
layer-wise decay: the published rate of 1.0 is none. Hours are the authors', on 8 A100 with 2 images each.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config, InternImageConfig, OptimConfig
from maskrcnn.presets.mmdetection import (
    mmdetection_cascade,
    mmdetection_model,
    mmdetection_recipe,
    multi_scale,
    one_scale,
)


def _tiny() -> InternImageConfig:
    return InternImageConfig(channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32), drop_path=0.2)


def _small() -> InternImageConfig:
    return InternImageConfig(
        channels=80, depths=(4, 4, 21, 4), groups=(5, 10, 20, 40), post_norm=True, drop_path=0.3
    )


def _base() -> InternImageConfig:
    return InternImageConfig(
        channels=112, depths=(4, 4, 21, 4), groups=(7, 14, 28, 56), post_norm=True, drop_path=0.4
    )


def _config(name: str, backbone: InternImageConfig, epochs: int) -> Config:
    config = mmdetection_recipe(
        mmdetection_model(name, backbone),
        epochs=epochs,
        augment=one_scale() if epochs == 12 else multi_scale(),
        optim=OptimConfig(lr=1e-4, weight_decay=0.05, weight_decay_vectors=0.0),
    )
    config.train.tf32 = True
    return config


def mask_rcnn_internimage_t_fpn_1x_coco() -> Config:
    """InternImage-T, 49 million parameters. Published: box AP 47.2, mask AP 42.5; 0.36 s an iteration, 9 hours."""
    return _config("mask_rcnn_internimage_t_fpn_1x_coco", _tiny(), epochs=12)


def mask_rcnn_internimage_t_fpn_3x_coco() -> Config:
    """InternImage-T, multi-scale. Published: box AP 49.1, mask AP 43.7; 0.34 s an iteration, 26 hours."""
    return _config("mask_rcnn_internimage_t_fpn_3x_coco", _tiny(), epochs=36)


def mask_rcnn_internimage_s_fpn_1x_coco() -> Config:
    """InternImage-S, 69 million parameters. Published: box AP 47.8, mask AP 43.3; 0.40 s an iteration, 10 hours."""
    return _config("mask_rcnn_internimage_s_fpn_1x_coco", _small(), epochs=12)


def mask_rcnn_internimage_s_fpn_3x_coco() -> Config:
    """InternImage-S, multi-scale. Published: box AP 49.7, mask AP 44.5; 0.40 s an iteration, 30 hours."""
    return _config("mask_rcnn_internimage_s_fpn_3x_coco", _small(), epochs=36)


def mask_rcnn_internimage_b_fpn_1x_coco() -> Config:
    """InternImage-B, 115 million parameters. Published: box AP 48.8, mask AP 44.0; 0.45 s an iteration, 11.5 hours."""
    return _config("mask_rcnn_internimage_b_fpn_1x_coco", _base(), epochs=12)


def mask_rcnn_internimage_b_fpn_3x_coco() -> Config:
    """InternImage-B, multi-scale. Published: box AP 50.3, mask AP 44.8; 0.45 s an iteration, 34 hours."""
    return _config("mask_rcnn_internimage_b_fpn_3x_coco", _base(), epochs=36)


def _cascade(name: str, backbone: InternImageConfig, epochs: int) -> Config:
    """Cascade of L or XL: layer-wise decay; the 3x recipe has 64 images a step and averages the weights."""
    many = epochs == 36
    config = mmdetection_recipe(
        mmdetection_cascade(mmdetection_model(name, backbone)),
        epochs=epochs,
        augment=multi_scale() if many else one_scale(),
        optim=OptimConfig(
            lr=2e-4 if many else 1e-4,
            weight_decay=0.05,
            weight_decay_vectors=0.0,
            layer_decay=0.90 if many else 0.94,
        ),
    )
    if many:
        config.data.batch_size = config.optim.reference_batch_size = 64
        config.train.iterations //= 4
        config.optim.milestones = tuple(m // 4 for m in config.optim.milestones)
        config.train.ema_decay = 0.9999
    config.train.tf32 = True
    return config


def _large() -> InternImageConfig:
    return InternImageConfig(
        channels=160,
        depths=(5, 5, 22, 5),
        groups=(10, 20, 40, 80),
        post_norm=True,
        offset_scale=2.0,
        drop_path=0.4,
    )


def _xlarge(drop_path: float) -> InternImageConfig:
    return InternImageConfig(
        channels=192,
        depths=(5, 5, 24, 5),
        groups=(12, 24, 48, 96),
        post_norm=True,
        offset_scale=2.0,
        drop_path=drop_path,
    )


def cascade_internimage_l_fpn_1x_coco() -> Config:
    """InternImage-L from ImageNet-22K, 277 million parameters. Published: box AP 54.9, mask AP 47.7."""
    return _cascade("cascade_internimage_l_fpn_1x_coco", _large(), epochs=12)


def cascade_internimage_l_fpn_3x_coco() -> Config:
    """InternImage-L, multi-scale. Published: box AP 56.1, mask AP 48.5."""
    return _cascade("cascade_internimage_l_fpn_3x_coco", _large(), epochs=36)


def cascade_internimage_xl_fpn_1x_coco() -> Config:
    """InternImage-XL from ImageNet-22K, 387 million parameters. Published: box AP 55.3, mask AP 48.1."""
    return _cascade("cascade_internimage_xl_fpn_1x_coco", _xlarge(0.4), epochs=12)


def cascade_internimage_xl_fpn_3x_coco() -> Config:
    """InternImage-XL, multi-scale. Published: box AP 56.2, mask AP 48.8."""
    return _cascade("cascade_internimage_xl_fpn_3x_coco", _xlarge(0.6), epochs=36)


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        mask_rcnn_internimage_t_fpn_1x_coco,
        mask_rcnn_internimage_t_fpn_3x_coco,
        mask_rcnn_internimage_s_fpn_1x_coco,
        mask_rcnn_internimage_s_fpn_3x_coco,
        mask_rcnn_internimage_b_fpn_1x_coco,
        mask_rcnn_internimage_b_fpn_3x_coco,
        cascade_internimage_l_fpn_1x_coco,
        cascade_internimage_l_fpn_3x_coco,
        cascade_internimage_xl_fpn_1x_coco,
        cascade_internimage_xl_fpn_3x_coco,
    )
}
