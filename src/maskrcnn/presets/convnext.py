"""ConvNeXt's Mask R-CNN and Cascade Mask R-CNNs, by their published names.

torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --out run --weights WEIGHTS.pth

starts from the classification weights of the same size (convnext_tiny_1k_224_ema.pth and so on; 22k: of ImageNet-22K),
the authors', timm's or torchvision's.
AdamW with layer-wise decay, no clipping; the original trained in mixed precision, all but XL.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config, ConvNeXtConfig, OptimConfig
from maskrcnn.presets.mmdetection import (
    mmdetection_cascade,
    mmdetection_model,
    mmdetection_recipe,
    multi_scale,
)


def _tiny() -> ConvNeXtConfig:
    return ConvNeXtConfig(drop_path=0.4)


def _larger(channels: int, drop_path: float) -> ConvNeXtConfig:
    return ConvNeXtConfig(channels=channels, depths=(3, 3, 27, 3), drop_path=drop_path)


def _optim(lr: float, layer_decay: float) -> OptimConfig:
    return OptimConfig(lr=lr, weight_decay=0.05, weight_decay_vectors=0.0, layer_decay=layer_decay)


def _cascade(name: str, backbone: ConvNeXtConfig, lr: float, layer_decay: float) -> Config:
    return mmdetection_recipe(
        mmdetection_cascade(mmdetection_model(name, backbone)),
        epochs=36,
        augment=multi_scale(),
        optim=_optim(lr, layer_decay),
    )


def mask_rcnn_convnext_tiny_1k_3x() -> Config:
    """ConvNeXt-T, 48 million parameters, multi-scale. Published: box AP 46.2, mask AP 41.7."""
    return mmdetection_recipe(
        mmdetection_model("mask_rcnn_convnext_tiny_1k_3x", _tiny()),
        epochs=36,
        augment=multi_scale(),
        optim=_optim(1e-4, 0.95),
    )


def cascade_mask_rcnn_convnext_tiny_1k_3x() -> Config:
    """ConvNeXt-T, 86 million parameters. Published: box AP 50.4, mask AP 43.7."""
    return _cascade("cascade_mask_rcnn_convnext_tiny_1k_3x", _tiny(), 2e-4, 0.7)


def cascade_mask_rcnn_convnext_small_1k_3x() -> Config:
    """ConvNeXt-S, 108 million parameters. Published: box AP 51.9, mask AP 45.0."""
    return _cascade("cascade_mask_rcnn_convnext_small_1k_3x", _larger(96, 0.6), 2e-4, 0.7)


def cascade_mask_rcnn_convnext_base_1k_3x() -> Config:
    """ConvNeXt-B, 146 million parameters. Published: box AP 52.7, mask AP 45.6."""
    return _cascade("cascade_mask_rcnn_convnext_base_1k_3x", _larger(128, 0.7), 2e-4, 0.8)


def cascade_mask_rcnn_convnext_base_22k_3x() -> Config:
    """ConvNeXt-B from ImageNet-22K. Published: box AP 54.0, mask AP 46.9."""
    return _cascade("cascade_mask_rcnn_convnext_base_22k_3x", _larger(128, 0.6), 1e-4, 0.8)


def cascade_mask_rcnn_convnext_large_22k_3x() -> Config:
    """ConvNeXt-L from ImageNet-22K, 255 million parameters. Published: box AP 54.8, mask AP 47.6."""
    return _cascade("cascade_mask_rcnn_convnext_large_22k_3x", _larger(192, 0.7), 1e-4, 0.7)


def cascade_mask_rcnn_convnext_xlarge_22k_3x() -> Config:
    """ConvNeXt-XL from ImageNet-22K, 407 million parameters. Published: box AP 55.2, mask AP 47.7."""
    return _cascade("cascade_mask_rcnn_convnext_xlarge_22k_3x", _larger(256, 0.8), 1e-4, 0.7)


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        mask_rcnn_convnext_tiny_1k_3x,
        cascade_mask_rcnn_convnext_tiny_1k_3x,
        cascade_mask_rcnn_convnext_small_1k_3x,
        cascade_mask_rcnn_convnext_base_1k_3x,
        cascade_mask_rcnn_convnext_base_22k_3x,
        cascade_mask_rcnn_convnext_large_22k_3x,
        cascade_mask_rcnn_convnext_xlarge_22k_3x,
    )
}
