"""Construction of models: the one place that turns a config into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from maskrcnn.backbones import family_of
from maskrcnn.backbones.fpn import FPN, FPNBackbone, LastMap
from maskrcnn.backbones.level_convs import LevelConvs
from maskrcnn.config import FPNConfig, InputConfig, ModelConfig, ResNetConfig, ViTConfig
from maskrcnn.errors import UserError
from maskrcnn.images.bands import check_band_files
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.mask_stages import MaskHeads
from maskrcnn.models.point_rend import PointRend
from maskrcnn.models.predictor import Predictor
from maskrcnn.models.rpn import RPN


def build_model(config: ModelConfig) -> Predictor:
    """Build a model with random weights.

    Raises:
        UserError: settings that contradict each other.
    """
    _check(config)
    body, out_channels = build_body(config)
    if config.fpn is None:
        backbone = LastMap(body, out_channels, stride=16)
    else:
        pyramid = _pyramid(config.fpn)
        backbone = FPNBackbone(
            body, pyramid(list(out_channels.values()), config.fpn), config.fpn.out_channels
        )
    rules = config.rules
    rpn = RPN(backbone.out_channels, backbone.strides, config.rpn, rules)
    res5, channels = build_shared_res5(config) or (None, backbone.out_channels)
    box_head = BoxHead if config.box_head.cascade is None else CascadeHead
    return Predictor(
        backbone,
        rpn,
        box_head(channels, config.num_classes, config.box_head, rules),
        _mask_head(channels, backbone.out_channels, config),
        None if config.keypoint_head is None else KeypointHead(channels, config.keypoint_head),
        res5,
        config,
    )


def _pyramid(config: FPNConfig) -> Callable[[list[int], FPNConfig], nn.Module]:
    if not config.simple:
        return FPN if config.top_down else LevelConvs
    from maskrcnn.backbones.vitdet import SimplePyramid

    return SimplePyramid


def _mask_head(channels: int, map_channels: int, config: ModelConfig) -> MaskHead | None:
    """Build the mask head, PointRend, or the interface of one over those of MMDetection's cascade. map_channels: of the
    maps, which PointRend reads also where pooled RoIs go through C4's last stage.
    """
    if config.mask_head is None:
        return None
    if config.mask_head.point_rend is not None:
        return cast("MaskHead", PointRend(map_channels, config.num_classes, config.mask_head, config.rules))
    how = (channels, config.num_classes, config.mask_head, config.rules)
    cascade = config.box_head.cascade
    if cascade is None or cascade.rules == "detectron2":
        return MaskHead(*how)
    return cast("MaskHead", MaskHeads(*how, cascade.loss_weights))


def build_shared_res5(config: ModelConfig) -> tuple[nn.Module, int] | None:
    """Build C4's last stage, which all heads share: the stage and its channels, or None for other models."""
    resnet = config.backbone
    if not isinstance(resnet, ResNetConfig) or resnet.last_stage == "res5":
        return None
    from maskrcnn.backbones.layers import freeze
    from maskrcnn.backbones.resnet import make_stage, stage_channels

    res5 = make_stage(resnet, 5)
    if resnet.frozen_stages == 5:
        freeze(res5)
    return res5, stage_channels(resnet, 5)


def build_body(config: ModelConfig) -> tuple[nn.Module, dict[str, int]]:
    """Build the backbone's body: the body and the channels of its maps by name, finest first."""
    body = family_of(config.backbone).build(config.backbone, config.input.num_channels)
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
    if config.box_head.federated_classes and config.box_head.scores != "sigmoid":
        refuse(
            "box_head.federated_classes",
            "expected 0 for scores by softmax. Set model.box_head.scores sigmoid.",
        )
    if (n := len(config.box_head.class_image_counts)) not in (0, config.num_classes):
        refuse(
            "box_head.class_image_counts", f"expected one a class, {config.num_classes}, or none, got {n}."
        )
    if (cascade := config.box_head.cascade) is not None:
        if config.box_head.train_on_pred_boxes:
            refuse(
                "box_head.train_on_pred_boxes", "expected false for a cascade, whose stages move their boxes."
            )
        stages = {len(cascade.iou_positive), len(cascade.box_weights), len(cascade.loss_weights)}
        if len(stages) != 1 or not cascade.iou_positive:
            refuse(
                "box_head.cascade",
                "expected iou_positive, box_weights and loss_weights for the same stages, got "
                f"{len(cascade.iou_positive)}, {len(cascade.box_weights)} and {len(cascade.loss_weights)}.",
            )
        if cascade.rules == "detectron2" and not config.box_head.class_agnostic:
            refuse("box_head.class_agnostic", "expected true for detectron2's cascade.")
    if isinstance(config.backbone, ResNetConfig):
        _check_resnet(config.backbone, config.fpn is not None, refuse)
    elif config.fpn is None:
        refuse("fpn", "expected a pyramid: only a ResNet does without.")
    one_map = isinstance(config.backbone, ViTConfig) and config.backbone.relative_positions
    if config.fpn is not None and config.fpn.simple != one_map:
        refuse(
            "fpn.simple",
            f"expected {str(one_map).lower()} for this backbone, got {str(not one_map).lower()}.",
        )
    levels = "5 levels P2 to P6" if config.fpn else "one map without a pyramid"
    if len(config.rpn.sizes) != (5 if config.fpn else 1):
        refuse("rpn.anchor_sizes", f"expected sizes for the {levels}, got {len(config.rpn.sizes)}.")
    if len({len(sizes) for sizes in config.rpn.sizes}) != 1:
        refuse(
            "rpn.anchor_sizes", "expected as many sizes at each level as at the others: they share one head."
        )
    _check_input(config.input, refuse)
    if config.fpn is not None and config.input.size_divisor % 32:
        refuse(
            "input.size_divisor", f"expected a multiple of 32 for a pyramid, got {config.input.size_divisor}."
        )


def _check_input(c: InputConfig, refuse: Callable[[str, str], None]) -> None:
    for name in ("pixel_mean", "pixel_std"):
        if (n := len(getattr(c, name))) != c.num_channels:
            refuse(f"input.{name}", f"expected one a channel, {c.num_channels}, got {n}.")
    if c.stretch and len(c.stretch) != c.channels:
        refuse("input.stretch", f"expected a range for each of {c.channels} bands, got {len(c.stretch)}.")
    for low, high in c.stretch:
        if not low < high:
            refuse("input.stretch", f"expected ranges from low to high, got {low:g} to {high:g}.")
    check_band_files(c)
    if len(c.shown_bands) not in (0, 1, 3) or not all(0 <= k < c.num_channels for k in c.shown_bands):
        refuse(
            "input.shown_bands",
            f"expected one or three of the {c.num_channels} bands, from 0, got {list(c.shown_bands)}.",
        )


def _check_resnet(resnet: ResNetConfig, pyramid: bool, refuse: Callable[[str, str], None]) -> None:
    if pyramid and (resnet.last_stage, resnet.res5_dilation) != ("res5", 1):
        refuse("fpn", "expected none for a ResNet that ends at res4 or has a dilated res5.")
    if not pyramid and resnet.last_stage == "res5" and resnet.res5_dilation == 1:
        refuse("fpn", "expected a pyramid for a plain ResNet; without: last_stage res4 or res5_dilation 2.")
    if resnet.res5_dilation not in (1, 2):
        refuse("backbone.res5_dilation", f"expected 1 or 2, got {resnet.res5_dilation}.")
    if resnet.depth < 50 and (resnet.deformable_stages or resnet.res5_dilation > 1):
        refuse(
            "backbone.depth", f"expected at least 50 for deformable or dilated stages, got {resnet.depth}."
        )
    if not set(resnet.deformable_stages) <= {2, 3, 4, 5}:
        refuse(
            "backbone.deformable_stages", f"expected some of 2 to 5, got {list(resnet.deformable_stages)}."
        )
