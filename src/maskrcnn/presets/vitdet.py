"""Models of detectron2's ViTDet project, by its names.

torchrun --nproc-per-node 64 -m maskrcnn train --data coco/ --model NAME --weights mae_pretrain_vit_base.pth --out run

starts from a masked autoencoder (He et al. 2021) of the same size, whose weights are CC BY-NC 4.0. Images are resized
to 1024 pixels on their longer side and padded to a square. AdamW with a rate that falls from layer to layer, 64 images
a step, large-scale jitter, half precision. Published AP is COCO val2017's: box / mask. The models `LVIS/...` are for
LVIS v1, whose val AP theirs is: sigmoid scores of 1,203 classes, a federated loss over 50 of them, 300 detections above
0.02. Their classes' names, `lvis_v1.txt`, are LVIS's by its ids from 1 (CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from maskrcnn.config import (
    AugmentConfig,
    BoxHeadConfig,
    CascadeConfig,
    Config,
    DataConfig,
    FPNConfig,
    InputConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimConfig,
    RPNConfig,
    TrainConfig,
    ViTConfig,
)

_SIDE = 1024


def _vitdet(size: str, *, cascade: bool) -> Config:
    dim, depth, heads, drop_path, layer_decay, epochs, iterations = {
        "b": (768, 12, 12, 0.1, 0.7, 100, 184_375),
        "l": (1024, 24, 16, 0.4, 0.8, 100, 184_375),
        "h": (1280, 32, 16, 0.5, 0.9, 75, 138_281),
    }[size]
    quarter = depth // 4
    huge = size == "h"  # whose authors let all of it decay
    return Config(
        model=ModelConfig(
            name=f"{'cascade_' if cascade else ''}mask_rcnn_vitdet_{size}_{epochs}ep",
            input=InputConfig(
                pixel_mean=(123.675, 116.28, 103.53),
                pixel_std=(58.395, 57.12, 57.375),
                channel_order="RGB",
                min_size=_SIDE,
                max_size=_SIDE,
                size_divisor=_SIDE,
            ),
            backbone=ViTConfig(
                dim=dim,
                depth=depth,
                num_heads=heads,
                drop_path=drop_path,
                global_blocks=tuple(quarter * (i + 1) - 1 for i in range(4)),
                relative_positions=True,
                layer_scale=False,
            ),
            fpn=FPNConfig(norm="ln", simple=True),
            rpn=RPNConfig(num_convs=2),
            box_head=BoxHeadConfig(
                num_convs=4,
                num_fcs=1,
                norm="ln",
                class_agnostic=cascade,
                cascade=CascadeConfig() if cascade else None,
            ),
            mask_head=MaskHeadConfig(norm="ln"),
        ),
        data=DataConfig(
            batch_size=64, augment=AugmentConfig(jitter_scale=(0.1, 2.0), crop_size=(_SIDE, _SIDE))
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=1e-4,
            reference_batch_size=64,
            weight_decay=0.1,
            weight_decay_norm=0.1 if huge else 0.0,
            no_decay_names=() if huge else ("pos_embed",),
            layer_decay=layer_decay,
            milestones=(round(iterations * 163_889 / 184_375), round(iterations * 177_546 / 184_375)),
            warmup_iterations=250,
            warmup_factor=1e-3,
        ),
        train=TrainConfig(iterations=iterations, precision="fp16"),
    )


def _lvis(size: str, *, cascade: bool) -> Config:
    """Set LVIS v1 for the network of a COCO model."""
    config = _vitdet(size, cascade=cascade)
    model, backbone = config.model, config.model.backbone
    model.name = f"LVIS/{'cascade_' if cascade else ''}mask_rcnn_vitdet_{size}_100ep"
    model.class_names = tuple(
        (Path(__file__).parent / "lvis_v1.txt").read_text(encoding="utf-8").splitlines()
    )
    model.num_classes = len(model.class_names)
    model.category_ids = tuple(range(1, model.num_classes + 1))
    model.box_head.scores, model.box_head.federated_classes = "sigmoid", 50
    model.box_head.score_threshold, model.box_head.detections_per_image = 0.02, 300
    config.data.repeat_threshold = 0.001
    config.optim.milestones, config.train.iterations = (138_889, 150_463), 156_250
    config.train.evaluate_max_detections = 300
    if size == "h":
        assert isinstance(backbone, ViTConfig)
        backbone.drop_path = 0.4
    else:
        config.optim.lr = 2e-4
    return config


def mask_rcnn_vitdet_b_100ep() -> Config:
    """ViT-B, 111 million parameters. mae_pretrain_vit_base. Published: 51.6 / 45.9."""
    return _vitdet("b", cascade=False)


def mask_rcnn_vitdet_l_100ep() -> Config:
    """ViT-L. mae_pretrain_vit_large. Published: 55.5 / 49.2."""
    return _vitdet("l", cascade=False)


def mask_rcnn_vitdet_h_75ep() -> Config:
    """ViT-H. mae_pretrain_vit_huge_p14to16. Published: 56.7 / 50.2."""
    return _vitdet("h", cascade=False)


def cascade_mask_rcnn_vitdet_b_100ep() -> Config:
    """ViT-B with a cascade, 141 million parameters. Published: 54.0 / 46.7."""
    return _vitdet("b", cascade=True)


def cascade_mask_rcnn_vitdet_l_100ep() -> Config:
    """ViT-L with a cascade. Published: 57.6 / 50.0."""
    return _vitdet("l", cascade=True)


def cascade_mask_rcnn_vitdet_h_75ep() -> Config:
    """ViT-H with a cascade. Published: 58.7 / 51.0."""
    return _vitdet("h", cascade=True)


def lvis_mask_rcnn_vitdet_b_100ep() -> Config:
    """ViT-B for LVIS v1, 117 million parameters. Published: 40.2 / 38.2."""
    return _lvis("b", cascade=False)


def lvis_mask_rcnn_vitdet_l_100ep() -> Config:
    """ViT-L for LVIS v1. Published: 46.1 / 43.6."""
    return _lvis("l", cascade=False)


def lvis_mask_rcnn_vitdet_h_100ep() -> Config:
    """ViT-H for LVIS v1. Published: 49.1 / 46.0."""
    return _lvis("h", cascade=False)


def lvis_cascade_mask_rcnn_vitdet_b_100ep() -> Config:
    """ViT-B for LVIS v1 with a cascade, 145 million parameters. Published: 43.0 / 38.9."""
    return _lvis("b", cascade=True)


def lvis_cascade_mask_rcnn_vitdet_l_100ep() -> Config:
    """ViT-L for LVIS v1 with a cascade. Published: 49.2 / 44.5."""
    return _lvis("l", cascade=True)


def lvis_cascade_mask_rcnn_vitdet_h_100ep() -> Config:
    """ViT-H for LVIS v1 with a cascade. Published: 51.5 / 46.6."""
    return _lvis("h", cascade=True)


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__.replace("lvis_", "LVIS/"): f
    for f in (
        mask_rcnn_vitdet_b_100ep,
        mask_rcnn_vitdet_l_100ep,
        mask_rcnn_vitdet_h_75ep,
        cascade_mask_rcnn_vitdet_b_100ep,
        cascade_mask_rcnn_vitdet_l_100ep,
        cascade_mask_rcnn_vitdet_h_75ep,
        lvis_mask_rcnn_vitdet_b_100ep,
        lvis_mask_rcnn_vitdet_l_100ep,
        lvis_mask_rcnn_vitdet_h_100ep,
        lvis_cascade_mask_rcnn_vitdet_b_100ep,
        lvis_cascade_mask_rcnn_vitdet_l_100ep,
        lvis_cascade_mask_rcnn_vitdet_h_100ep,
    )
}
