"""The one place that turns a config into a model."""

from __future__ import annotations

from torch import nn

from maskrcnn.backbones.fpn import FPNBackbone
from maskrcnn.config import InternImageConfig, MobileNetV2Config, ModelConfig, ResNetConfig, ViTConfig
from maskrcnn.errors import UserError
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.rpn import RPN


def build_model(config: ModelConfig) -> MaskRCNN:
    """A model with random weights.

    Raises:
        UserError: settings that contradict each other.
    """
    _check(config)
    body, out_channels = build_body(config)
    assert config.fpn is not None
    backbone = FPNBackbone(body, out_channels, config.fpn)
    channels, strides = backbone.out_channels, backbone.strides
    roi = (channels, strides[:-1], config.num_classes)
    mask_head = None if config.mask_head is None else MaskHead(*roi, config.mask_head)
    keypoint_head = None if config.keypoint_head is None else KeypointHead(*roi[:2], config.keypoint_head)
    rpn = RPN(channels, strides, config.rpn)
    box_head = (BoxHead if config.box_head.cascade is None else CascadeHead)(*roi, config.box_head)
    return MaskRCNN(backbone, rpn, box_head, mask_head, keypoint_head, config)


def build_body(config: ModelConfig) -> tuple[nn.Module, dict[str, int]]:
    """The backbone's body and the channels of its maps by name, finest first.

    Each file is imported where its model is asked for: one does not wait for the others.
    """
    match config.backbone:
        case ResNetConfig():
            from maskrcnn.backbones.resnet import ResNet

            body = ResNet(config.backbone)
        case MobileNetV2Config():
            from maskrcnn.backbones.mobilenet import MobileNetV2

            body = MobileNetV2(config.backbone)
        case InternImageConfig():
            from maskrcnn.backbones.internimage import InternImage

            body = InternImage(config.backbone)
        case ViTConfig():
            raise NotImplementedError
    return body, body.out_channels


def _check(config: ModelConfig) -> None:
    def refuse(setting: str, problem: str) -> None:
        raise UserError(f"model.{setting}: {problem}")

    if config.num_classes < 1:
        refuse("num_classes", f"expected at least 1, got {config.num_classes}.")
    for name in ("class_names", "category_ids"):
        if (n := len(getattr(config, name))) not in (0, config.num_classes):
            refuse(name, f"expected one a class, {config.num_classes}, or none, got {n}.")
    if (head := config.keypoint_head) is not None:
        if head.num_keypoints < 1:
            refuse("keypoint_head.num_keypoints", f"expected at least 1, got {head.num_keypoints}.")
        if len(head.names) not in (0, head.num_keypoints):
            refuse(
                "keypoint_head.names",
                f"expected one a key point, {head.num_keypoints}, or none, got {len(head.names)}.",
            )
        for name in ("flip_pairs", "skeleton"):
            for pair in getattr(head, name):
                if not all(0 <= k < head.num_keypoints for k in pair):
                    refuse(
                        f"keypoint_head.{name}",
                        f"expected numbers of the {head.num_keypoints} key points, from 0, got {list(pair)}.",
                    )
    if (cascade := config.box_head.cascade) is not None:
        if not config.box_head.class_agnostic:
            refuse("box_head.class_agnostic", "expected true for a cascade, which moves one box a RoI.")
        if len(cascade.iou_positive) != len(cascade.box_weights) or not cascade.iou_positive:
            refuse(
                "box_head.cascade",
                f"expected iou_positive and box_weights for the same stages, got {len(cascade.iou_positive)} "
                f"and {len(cascade.box_weights)}.",
            )
    if len(config.rpn.anchor_sizes) != 5:
        refuse(
            "rpn.anchor_sizes",
            f"expected sizes for the 5 levels P2 to P6, got {len(config.rpn.anchor_sizes)}.",
        )
    if len({len(sizes) for sizes in config.rpn.anchor_sizes}) != 1:
        refuse(
            "rpn.anchor_sizes", "expected as many sizes at each level as at the others: they share one head."
        )
    if config.input.size_divisor % 32:
        refuse(
            "input.size_divisor", f"expected a multiple of 32 for a pyramid, got {config.input.size_divisor}."
        )
