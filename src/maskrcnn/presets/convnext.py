"""ConvNeXt's Mask R-CNN, by its published name.

torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --weights convnext_tiny_1k_224_ema.pth --out run

starts from the classification weights of the same size (ImageNet-1K, 224 pixels). AdamW with layer-wise decay, no
clipping; the original trained in mixed precision.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config, ConvNeXtConfig, OptimConfig
from maskrcnn.presets.mmdetection import mmdetection_model, mmdetection_recipe, multi_scale


def mask_rcnn_convnext_tiny_1k_3x() -> Config:
    """ConvNeXt-T, 48 million parameters, multi-scale. Published: box AP 46.2, mask AP 41.7."""
    return mmdetection_recipe(
        mmdetection_model("mask_rcnn_convnext_tiny_1k_3x", ConvNeXtConfig(drop_path=0.4)),
        epochs=36,
        augment=multi_scale(),
        optim=OptimConfig(lr=1e-4, weight_decay=0.05, weight_decay_vectors=0.0, layer_decay=0.95),
    )


PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in (mask_rcnn_convnext_tiny_1k_3x,)}
