"""Table of the rewrites: what is made faster, on which processors, in training or in inference alone.

A row stands where `benchmarks/rewrites.py` found at least 5 % of the part that it speeds up, or for the reason that it
names. The kind `other` is taken to be like AVX2 but for what was measured there (Winograd).
"""

from __future__ import annotations

from torch import nn

from maskrcnn.backbones import internimage
from maskrcnn.backbones.fpn import FPN
from maskrcnn.backbones.layers import Conv
from maskrcnn.backbones.mobilenet import ConvBlock
from maskrcnn.backbones.resnet import BottleneckBlock
from maskrcnn.backbones.vit_adapter import DeformableAttention, ViTAdapter
from maskrcnn.engines import convolutions, heads, norms, transformers
from maskrcnn.engines.rewrites import Rewrite
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.point_rend import PointRend
from maskrcnn.models.rpn import RPNHead
from maskrcnn.processor import Kind

AVX512: frozenset[Kind] = frozenset({"avx512", "avx512_amd"})
AMD: frozenset[Kind] = frozenset({"avx512_amd"})

# For the memory of C4 and DC5, with any engine.
SMALL_MEMORY = (Rewrite(module=BoxHead, method="predict_rois", fast=heads.predict_rois),)

REWRITES: tuple[Rewrite, ...] = (
    Rewrite(
        module=Conv,
        method="forward",
        fast=convolutions.conv,
        suits=convolutions.suits_winograd,
        in_training=True,
        needs_grad=None,
    ),
    Rewrite(
        module=RPNHead, method="forward", fast=heads.rpn_head, in_training=True
    ),  # it has no gradient there
    Rewrite(
        module=ConvBlock,
        method="forward",
        fast=convolutions.depthwise,
        suits=convolutions.is_strided_depthwise,
        in_training=True,
        needs_grad=True,
        under_autocast=True,
    ),
    Rewrite(module=BottleneckBlock, method="forward", fast=convolutions.bottleneck, kinds=AVX512),
    Rewrite(module=FPN, method="forward", fast=convolutions.fpn),
    Rewrite(module=nn.GroupNorm, method="forward", fast=norms.group_norm),  # for its accuracy
    *SMALL_MEMORY,
    Rewrite(module=BoxHead, method="predict_pooled", fast=heads.predict_pooled, kinds=AMD),
    # For memory; and a training step is 4 to 10 % faster by it, backward included.
    Rewrite(module=MaskHead, method="forward", fast=heads.masks, in_training=True, needs_grad=None),
    Rewrite(module=PointRend, method="forward", fast=heads.rendered_masks),  # for memory
    Rewrite(module=internimage.MLP, method="forward", fast=transformers.mlp),
    Rewrite(module=internimage.DCNv3, method="modulation", fast=transformers.modulation, kinds=AVX512),
    Rewrite(module=DeformableAttention, method="modulation", fast=transformers.adapter_modulation),
    Rewrite(module=ViTAdapter, method="merge", fast=transformers.merge),
)
