"""Swin's Mask R-CNNs and Cascade Mask R-CNNs, by their published names.

torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --out run --weights WEIGHTS.pth

starts from the classification weights of the same size (swin_tiny_patch4_window7_224.pth, swin_small...; ImageNet-1K),
the authors', timm's or torchvision's.
AdamW, no clipping, no layer-wise decay; the original trained in mixed precision.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import Config, OptimConfig, SwinConfig
from maskrcnn.presets.mmdetection import (
    mmdetection_cascade,
    mmdetection_model,
    mmdetection_recipe,
    multi_scale,
)

# All that is named norm there: the backbone's. Biases elsewhere decay, and so do the box heads' norms, named bn there.
NO_DECAY = (
    "relative_position_bias_table",
    *("patch_embed.norm.", "downsample.norm.", "norm0.", "norm1.", "norm2.", "norm3."),
)


def _mask_rcnn(size: str, schedule: str, backbone: SwinConfig) -> tuple[str, Callable[[], Config]]:
    name = f"mask_rcnn_swin_{size}_patch4_window7_mstrain_480-800_adamw_{schedule}_coco"

    def preset() -> Config:
        return mmdetection_recipe(
            mmdetection_model(name, backbone),
            epochs={"1x": 12, "3x": 36}[schedule],
            augment=multi_scale(),
            optim=OptimConfig(lr=1e-4, weight_decay=0.05, weight_decay_norm=0.05, no_decay_names=NO_DECAY),
        )

    return name, preset


def _cascade(size: str, schedule: str, backbone: SwinConfig) -> tuple[str, Callable[[], Config]]:
    name = f"cascade_mask_rcnn_swin_{size}_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_{schedule}_coco"

    def preset() -> Config:
        return mmdetection_recipe(
            mmdetection_cascade(mmdetection_model(name, backbone)),
            epochs={"1x": 12, "3x": 36}[schedule],
            augment=multi_scale(),
            optim=OptimConfig(lr=1e-4, weight_decay=0.05, weight_decay_norm=0.05, no_decay_names=NO_DECAY),
        )

    return name, preset


PRESETS: dict[str, Callable[[], Config]] = dict(
    (
        _mask_rcnn("tiny", "1x", SwinConfig(drop_path=0.1)),
        _mask_rcnn("tiny", "3x", SwinConfig(drop_path=0.2)),
        _mask_rcnn("small", "3x", SwinConfig(depths=(2, 2, 18, 2), drop_path=0.2)),
        _cascade("tiny", "1x", SwinConfig(drop_path=0.0)),
        _cascade("tiny", "3x", SwinConfig(drop_path=0.2)),
        _cascade("small", "3x", SwinConfig(depths=(2, 2, 18, 2), drop_path=0.2)),
        _cascade(
            "base",
            "3x",
            SwinConfig(channels=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path=0.3),
        ),
    )
)
