"""Mask R-CNNs on plain ViTs and on ViT-Adapters, by their published names.

torchrun --nproc-per-node 8 -m maskrcnn train --data coco/ --model NAME --weights deit_small_patch16_224.pth --out run

starts from a classifier of the same size: DeiT (tiny, small, base; ImageNet-1K, 224 pixels), AugReg's L/16
(ImageNet-21K and then 1K, 384 pixels) or Uni-Perceiver's base model; or from DINOv2; or, `mask_rcnn_mae_*`, from a
masked autoencoder (He et al. 2021; mae_pretrain_vit_base.pth), whose weights are CC BY-NC 4.0. The authors trained on
8 GPUs with 2 images each and publish no hours. AdamW without clipping; DeiT's and MAE's with one rate for all layers,
the others' with a rate that falls from layer to layer towards the image.
"""

from __future__ import annotations

from collections.abc import Callable

from maskrcnn.config import (
    AdapterConfig,
    AugmentConfig,
    BoxHeadConfig,
    Config,
    FPNConfig,
    MaskHeadConfig,
    OptimConfig,
    ViTConfig,
)
from maskrcnn.presets.mmdetection import (
    mmdetection_cascade,
    mmdetection_model,
    mmdetection_recipe,
    multi_scale,
    one_scale,
)

AUGREG_MEAN = AUGREG_STD = (127.5, 127.5, 127.5)
# All that is named norm or bias in the original, where the norms of pyramid and heads are not: these decay.
NO_DECAY_BUT_IN_HEADS = (
    *("level_embed", "pos_embed", "bias", "query_norm", "feat_norm", "ffn_norm"),
    *("norm1.", "norm2.", "norm3.", "norm4."),
)


def _deit(size: str, *, adapter: bool) -> ViTConfig:
    dim, num_heads, drop_path = {"tiny": (192, 3, 0.1), "small": (384, 6, 0.2), "base": (768, 12, 0.3)}[size]
    if not adapter:
        return ViTConfig(dim=dim, num_heads=num_heads, drop_path=0.1)
    # Base has more heads than the others, on half as many channels.
    deformable = AdapterConfig(num_heads=12, deform_ratio=0.5) if size == "base" else AdapterConfig()
    return ViTConfig(dim=dim, num_heads=num_heads, drop_path=drop_path, adapter=deformable)


def _augreg(*, adapter: bool) -> ViTConfig:
    return ViTConfig(
        dim=1024,
        depth=24,
        num_heads=16,
        global_blocks=(5, 11, 17, 23),
        pretrain_size=384,
        drop_path=0.4,
        adapter=AdapterConfig(
            num_heads=16, deform_ratio=0.5, interactions=((0, 5), (6, 11), (12, 17), (18, 23))
        )
        if adapter
        else None,
    )


def _same_rate(lr: float = 1e-4, weight_decay: float = 0.05) -> OptimConfig:
    """Optimiser with one rate for all layers. Weights decay, those of norms by their name; scales and the spatial
    prior's norms are not among these.
    """
    return OptimConfig(
        lr=lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay,
        no_decay_names=("level_embed", "pos_embed", "norm", "bias"),
    )


def _rate_by_layer(layer_decay: float) -> OptimConfig:
    """Optimiser whose rate falls from layer to layer. All parameters of more than one dimension decay."""
    return OptimConfig(
        lr=1e-4, weight_decay=0.05, weight_decay_norm=0.0, weight_decay_vectors=0.0, layer_decay=layer_decay
    )


def _augment(epochs: int) -> AugmentConfig:
    if epochs == 12:
        return one_scale()
    augment = multi_scale()
    augment.crop_size = (1024, 1024)
    return augment


def _deit_config(
    size: str, epochs: int, *, adapter: bool, top_down: bool = True, optim: OptimConfig | None = None
) -> Config:
    name = f"mask_rcnn_deit_{'adapter_' if adapter else ''}{size}_{'fpn_' if top_down else ''}{epochs // 12}x_coco"
    return mmdetection_recipe(
        mmdetection_model(name, _deit(size, adapter=adapter), top_down=top_down),
        epochs=epochs,
        augment=_augment(epochs),
        optim=optim or _same_rate(),
    )


def _augreg_config(epochs: int, *, adapter: bool) -> Config:
    name = f"mask_rcnn_augreg_{'adapter_' if adapter else ''}large_fpn_{epochs // 12}x_coco"
    return mmdetection_recipe(
        mmdetection_model(name, _augreg(adapter=adapter), pixel_mean=AUGREG_MEAN, pixel_std=AUGREG_STD),
        epochs=epochs,
        augment=_augment(epochs),
        optim=_rate_by_layer(0.80),
    )


def mask_rcnn_deit_tiny_fpn_3x_coco() -> Config:
    """ViT-T, 26 million parameters. Published: box AP 40.2, mask AP 37.0."""
    return _deit_config("tiny", 36, adapter=False)


def mask_rcnn_deit_small_fpn_3x_coco() -> Config:
    """ViT-S, 44 million parameters. Published: box AP 44.0, mask AP 39.9."""
    return _deit_config("small", 36, adapter=False)


def mask_rcnn_deit_base_fpn_3x_coco() -> Config:
    """ViT-B, 114 million parameters. Published: box AP 45.8, mask AP 41.3."""
    return _deit_config("base", 36, adapter=False)


def mask_rcnn_augreg_large_fpn_3x_coco() -> Config:
    """ViT-L, 337 million parameters. Published: box AP 48.3, mask AP 43.3."""
    return _augreg_config(36, adapter=False)


def mask_rcnn_deit_adapter_tiny_fpn_1x_coco() -> Config:
    """ViT-Adapter-T, 28 million parameters, twice the rate of the others. Published: box AP 41.1, mask AP 37.5."""
    return _deit_config("tiny", 12, adapter=True, optim=_same_rate(lr=2e-4, weight_decay=0.01))


def mask_rcnn_deit_adapter_small_fpn_1x_coco() -> Config:
    """ViT-Adapter-S, 48 million parameters. Published, without weights: box AP 44.7, mask AP 39.9."""
    return _deit_config("small", 12, adapter=True)


def mask_rcnn_deit_adapter_base_fpn_1x_coco() -> Config:
    """ViT-Adapter-B, 120 million parameters. Published, without weights: box AP 47.0, mask AP 41.8."""
    return _deit_config("base", 12, adapter=True)


def mask_rcnn_deit_adapter_tiny_fpn_3x_coco() -> Config:
    """ViT-Adapter-T, multi-scale. Published: box AP 46.0, mask AP 41.0."""
    return _deit_config("tiny", 36, adapter=True)


def mask_rcnn_deit_adapter_small_fpn_3x_coco() -> Config:
    """ViT-Adapter-S, multi-scale. Published: box AP 48.2, mask AP 42.8."""
    return _deit_config("small", 36, adapter=True)


def mask_rcnn_deit_adapter_base_fpn_3x_coco() -> Config:
    """ViT-Adapter-B, multi-scale. Published: box AP 49.6, mask AP 43.6, with a drop path of 0.2 at that time."""
    return _deit_config("base", 36, adapter=True)


def mask_rcnn_deit_adapter_small_3x_coco() -> Config:
    """ViT-Adapter-S without a pyramid on it, 45 million parameters, in fp16. Published: box AP 48.2, mask AP 42.7."""
    config = _deit_config("small", 36, adapter=True, top_down=False)
    config.train.precision, config.train.loss_scale = "fp16", 512.0
    return config


def mask_rcnn_augreg_adapter_large_fpn_1x_coco() -> Config:
    """ViT-Adapter-L, 348 million parameters. Published, without weights: box AP 48.7, mask AP 43.3."""
    return _augreg_config(12, adapter=True)


def mask_rcnn_augreg_adapter_large_fpn_3x_coco() -> Config:
    """ViT-Adapter-L, multi-scale. Published: box AP 52.1, mask AP 46.0."""
    return _augreg_config(36, adapter=True)


def mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco() -> Config:
    """ViT-Adapter-B on Uni-Perceiver, 120 million parameters. Published: box AP 51.2, mask AP 45.3."""
    backbone = ViTConfig(
        dim=768,
        num_heads=12,
        uni_perceiver=True,
        drop_path=0.2,
        adapter=AdapterConfig(num_heads=12, deform_ratio=0.5),
    )
    return mmdetection_recipe(
        mmdetection_model("mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco", backbone),
        epochs=36,
        augment=_augment(36),
        optim=_rate_by_layer(0.65),
    )


def _dinov2(size: str) -> Config:
    """ViT-Adapter on DINOv2's transformer, whose position embedding is of 592 pixels."""
    dim, depth, heads, drop_path, layer_decay = {
        "small": (384, 12, 6, 0.2, 0.70),
        "base": (768, 12, 12, 0.3, 0.60),
        "large": (1024, 24, 16, 0.4, 0.65),
    }[size]
    quarter = depth // 4
    backbone = ViTConfig(
        dim=dim,
        depth=depth,
        num_heads=heads,
        drop_path=drop_path,
        global_blocks=tuple(quarter * (i + 1) - 1 for i in range(4)),
        pretrain_size=592,
        adapter=AdapterConfig(
            num_heads=heads,
            deform_ratio=1.0 if size == "small" else 0.5,
            interactions=tuple((quarter * i, quarter * (i + 1) - 1) for i in range(4)),
        ),
    )
    return mmdetection_recipe(
        mmdetection_model(f"mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco", backbone),
        epochs=36,
        augment=_augment(36),
        optim=_rate_by_layer(layer_decay),
    )


def mask_rcnn_dinov2_adapter_small_fpn_3x_coco() -> Config:
    """ViT-Adapter-S on DINOv2, 48 million parameters. Published: box AP 51.5, mask AP 45.6."""
    return _dinov2("small")


def mask_rcnn_dinov2_adapter_base_fpn_3x_coco() -> Config:
    """ViT-Adapter-B on DINOv2, 121 million parameters. Published: box AP 54.1, mask AP 47.8."""
    return _dinov2("base")


def mask_rcnn_dinov2_adapter_large_fpn_3x_coco() -> Config:
    """ViT-Adapter-L on DINOv2, 349 million parameters. Published: box AP 55.3, mask AP 49.0, with ImageNet's mean and
    deviation at test time, as here; the authors trained it with 127.5 for both.
    """
    return _dinov2("large")


def _deit_cascade(size: str) -> Config:
    config = mmdetection_recipe(
        mmdetection_cascade(
            mmdetection_model(f"cascade_mask_rcnn_deit_adapter_{size}_fpn_3x_coco", _deit(size, adapter=True))
        ),
        epochs=36,
        augment=_augment(36),
        optim=_same_rate(),
    )
    config.optim.no_decay_names = NO_DECAY_BUT_IN_HEADS
    config.train.precision, config.train.loss_scale = "fp16", 512.0
    return config


def cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco() -> Config:
    """ViT-Adapter-S, 86 million parameters, in fp16. Published: box AP 51.5, mask AP 44.3."""
    return _deit_cascade("small")


def cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco() -> Config:
    """ViT-Adapter-B, 158 million parameters, in fp16. Published: box AP 52.1, mask AP 44.8."""
    return _deit_cascade("base")


def _mae(epochs: int, drop_path: float) -> Config:
    """ViT-Adapter-B on a masked autoencoder, in the upgraded Mask R-CNN of Li et al. 2021 (arXiv 2111.11429): batch
    norms in pyramid and heads, two convolutions in the RPN, four in the box head. Large-scale jitter, and a rate that
    falls along a cosine: here with every step, in the original with every epoch. Images are padded to the largest of
    their batch, in the original to 1024 x 1024.
    """
    backbone = ViTConfig(
        dim=768,
        num_heads=12,
        layer_scale=False,
        drop_path=drop_path,
        adapter=AdapterConfig(num_heads=12, deform_ratio=0.5, extra_extractors=0),
    )
    model = mmdetection_model(f"mask_rcnn_mae_adapter_base_lsj_fpn_{epochs}ep_coco", backbone)
    model.fpn = FPNConfig(norm="sync_bn")
    model.rpn.num_convs = 2
    model.box_head = BoxHeadConfig(num_convs=4, num_fcs=1, norm="sync_bn")
    model.mask_head = MaskHeadConfig(norm="sync_bn")
    model.rules.ignore_padding = False  # of a square image there, all anchors learn
    optim = _same_rate()
    optim.no_decay_names = NO_DECAY_BUT_IN_HEADS
    optim.schedule, optim.final_lr_fraction, optim.warmup_iterations = "cosine", 0.01, 2000
    augment = AugmentConfig(jitter_scale=(0.1, 2.0), crop_size=(1024, 1024), antialias=False)
    config = mmdetection_recipe(model, epochs=epochs, augment=augment, optim=optim)
    config.train.precision, config.train.loss_scale = "fp16", 512.0
    return config


def mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco() -> Config:
    """ViT-Adapter-B, 120 million parameters, 25 epochs in fp16. Published: box AP 50.3, mask AP 44.7, and 122 million
    parameters, which is with the two extra extractors that the published settings leave out.
    """
    return _mae(25, drop_path=0.1)


def mask_rcnn_mae_adapter_base_lsj_fpn_50ep_coco() -> Config:
    """ViT-Adapter-B, 50 epochs in fp16. Published: box AP 50.8, mask AP 45.1."""
    return _mae(50, drop_path=0.2)


PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        mask_rcnn_deit_tiny_fpn_3x_coco,
        mask_rcnn_deit_small_fpn_3x_coco,
        mask_rcnn_deit_base_fpn_3x_coco,
        mask_rcnn_augreg_large_fpn_3x_coco,
        mask_rcnn_deit_adapter_tiny_fpn_1x_coco,
        mask_rcnn_deit_adapter_small_fpn_1x_coco,
        mask_rcnn_deit_adapter_base_fpn_1x_coco,
        mask_rcnn_deit_adapter_tiny_fpn_3x_coco,
        mask_rcnn_deit_adapter_small_fpn_3x_coco,
        mask_rcnn_deit_adapter_base_fpn_3x_coco,
        mask_rcnn_deit_adapter_small_3x_coco,
        mask_rcnn_augreg_adapter_large_fpn_1x_coco,
        mask_rcnn_augreg_adapter_large_fpn_3x_coco,
        mask_rcnn_uniperceiver_adapter_base_fpn_3x_coco,
        mask_rcnn_dinov2_adapter_small_fpn_3x_coco,
        mask_rcnn_dinov2_adapter_base_fpn_3x_coco,
        mask_rcnn_dinov2_adapter_large_fpn_3x_coco,
        cascade_mask_rcnn_deit_adapter_small_fpn_3x_coco,
        cascade_mask_rcnn_deit_adapter_base_fpn_3x_coco,
        mask_rcnn_mae_adapter_base_lsj_fpn_25ep_coco,
        mask_rcnn_mae_adapter_base_lsj_fpn_50ep_coco,
    )
}
