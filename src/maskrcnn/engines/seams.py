"""Seams of a model: its dense parts, with plain tensors in and out, which an engine may run as graphs of its own.

What lies between them, proposals, pooling, suppression and pasting, stays the same for all engines. Maps and pooled
RoIs pass a seam channels-last, as (B, H, W, C): no side has to reorder them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskrcnn.config import InternImageConfig, ModelConfig, ResNetConfig, ViTConfig
from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.mask_stages import MaskHeads
from maskrcnn.models.rpn import RPNHead

Run = Callable[..., tuple[Tensor, ...]]
Dims = dict[int, Any]

MOST_ROIS, MOST_SIDE = 1 << 20, 16384


@dataclass(frozen=True)
class Seam:
    """Dense part of a model.

    network: what computes, plain tensors in, a tuple of tensors out; examples: of its inputs; dims: which of their
    sides may vary; put: lets the model call a function in the network's place.
    """

    name: str
    network: nn.Module
    examples: tuple[Tensor, ...]
    dims: tuple[Dims, ...]
    put: Callable[[Run], None]

    def export(self) -> torch.export.ExportedProgram:
        """Trace the network."""
        with torch.no_grad():
            return torch.export.export(
                self.network.eval(), self.examples, dynamic_shapes=self.dims, strict=False
            )


def without_graph(config: ModelConfig) -> str | None:
    """Name the part of a model that has no form in other runtimes' graphs, or None."""
    backbone = config.backbone
    if isinstance(backbone, InternImageConfig):
        return "its deformable convolution, DCNv3,"
    if isinstance(backbone, ViTConfig) and backbone.adapter is not None:
        return "its deformable attention"
    if isinstance(backbone, ResNetConfig) and backbone.deformable_stages:
        return "its deformable convolution"
    return None


def seams_of(model: MaskRCNN) -> Iterator[Seam]:
    """Yield the seams of a model on the CPU in float32."""
    yield _dense(model)
    channels = model.backbone.out_channels
    heads = (
        model.box_head.heads if isinstance(model.box_head, CascadeHead) else [cast("BoxHead", model.box_head)]
    )
    if model.res5 is not None:
        size = 2 * heads[0].config.pool_size
        pooled = torch.rand(3, size, size, channels)
        yield _of_rois("res5", _Res5(model.res5), (pooled,), _put_res5(model.res5))
        channels = heads[
            0
        ].class_predictor.in_features  # these read what it gives, without layers of their own
    for i, head in enumerate(heads):
        size = head.config.pool_size
        pooled = torch.rand(3, size, size, channels)
        yield _of_rois(f"box_head_{i}", _Boxes(head), (pooled,), _put_boxes(head))
    if isinstance(model.mask_head, MaskHead | MaskHeads):  # PointRend reads the maps, not pooled RoIs
        size = model.mask_head.config.pool_size
        pooled, labels = torch.rand(3, size, size, channels), torch.zeros(3, dtype=torch.int64)
        yield _of_rois("mask_head", _Masks(model.mask_head), (pooled, labels), _put_masks(model.mask_head))
    if model.keypoint_head is not None:
        size = model.keypoint_head.config.pool_size
        pooled = torch.rand(3, size, size, channels)
        yield _of_rois(
            "keypoint_head", _Heatmaps(model.keypoint_head), (pooled,), _put_heatmaps(model.keypoint_head)
        )


# --- pixels to maps and what the RPN says of them


class Maps(list[Tensor]):
    """Feature maps with the RPN head's predictions on them, which came out of the same graph."""

    logits: list[Tensor]
    deltas: list[Tensor]


class _Dense(nn.Module):
    """Backbone and RPN head: pixels (B, H, W, C) -> L maps, L objectness_logits, L box_deltas."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.backbone, self.head = _apart(model.backbone), _apart(model.rpn.head)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(pixels.permute(0, 3, 1, 2))
        logits, deltas = self.head(maps)
        return (*(x.permute(0, 2, 3, 1) for x in maps), *logits, *deltas)


def _dense(model: MaskRCNN) -> Seam:
    divisor = model.config.input.size_divisor
    example, sides = picture_sides(divisor)
    dims = {0: torch.export.Dim("batch", min=1, max=1024), 1: sides[0], 2: sides[1]}
    levels = len(model.backbone.strides)

    def put(run: Run) -> None:
        def backbone(self: nn.Module, pixels: Tensor) -> Maps:
            out = run(pixels.permute(0, 2, 3, 1))
            maps = Maps(x.permute(0, 3, 1, 2) for x in out[:levels])
            maps.logits, maps.deltas = list(out[levels : 2 * levels]), list(out[2 * levels :])
            return maps

        def rpn_head(self: RPNHead, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            if isinstance(features, Maps):
                return features.logits, features.deltas
            return RPNHead.forward(self, features)

        _bind(model.backbone, "forward", backbone)
        _bind(model.rpn.head, "forward", rpn_head)

    return Seam(
        "dense", _Dense(model), (torch.rand(2, *example, model.config.input.num_channels),), (dims,), put
    )


def picture_sides(divisor: int) -> tuple[tuple[int, int], tuple[Any, Any]]:
    """Example of a padded picture's (H, W), and what either side may be: multiples of a divisor, from two, or 64
    pixels, on.
    """
    units = max(1, 64 // divisor)
    most = MOST_SIDE // divisor
    rows, columns = (torch.export.Dim(name, min=max(2, units), max=most) for name in ("rows", "columns"))
    return (2 * units * divisor, 3 * units * divisor), (divisor * rows, divisor * columns)


# --- pooled RoIs to what the heads say of them


def _of_rois(name: str, network: nn.Module, examples: tuple[Tensor, ...], put: Callable[[Run], None]) -> Seam:
    rois = {0: torch.export.Dim("rois", min=1, max=MOST_ROIS)}
    return Seam(name, network, examples, tuple(rois for _ in examples), put)


class _Head(nn.Module):
    """A head's dense part over pooled RoIs (R, S, S, C)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head: Any = _apart(head)


class _Res5(_Head):
    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        return (self.head(pooled.permute(0, 3, 1, 2)).permute(0, 2, 3, 1),)


class _Boxes(_Head):
    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        return self.head.predict_pooled(pooled.permute(0, 3, 1, 2))


class _Masks(_Head):
    def forward(self, pooled: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (self.head.predict_pooled(pooled.permute(0, 3, 1, 2), labels),)


class _Heatmaps(_Head):
    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        return (self.head.predict_pooled(pooled.permute(0, 3, 1, 2)),)


def _put_res5(module: nn.Module) -> Callable[[Run], None]:
    def put(run: Run) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return (
                run(x.permute(0, 2, 3, 1))[0].permute(0, 3, 1, 2)
                if x.shape[0]
                else type(self).forward(self, x)
            )

        _bind(module, "forward", forward)

    return put


def _put_boxes(module: BoxHead) -> Callable[[Run], None]:
    def put(run: Run) -> None:
        def predict_pooled(self: BoxHead, x: Tensor) -> tuple[Tensor, ...]:
            return run(x.permute(0, 2, 3, 1)) if x.shape[0] else BoxHead.predict_pooled(self, x)

        _bind(module, "predict_pooled", predict_pooled)

    return put


def _put_masks(module: MaskHead) -> Callable[[Run], None]:
    def put(run: Run) -> None:
        def predict_pooled(self: MaskHead, x: Tensor, labels: Tensor) -> Tensor:
            if not x.shape[0]:
                return type(self).predict_pooled(self, x, labels)  # of one head or of a cascade's
            return run(x.permute(0, 2, 3, 1), labels)[0]

        _bind(module, "predict_pooled", predict_pooled)

    return put


def _put_heatmaps(module: KeypointHead) -> Callable[[Run], None]:
    def put(run: Run) -> None:
        def predict_pooled(self: KeypointHead, x: Tensor) -> Tensor:
            return run(x.permute(0, 2, 3, 1))[0] if x.shape[0] else KeypointHead.predict_pooled(self, x)

        _bind(module, "predict_pooled", predict_pooled)

    return put


def _apart(module: nn.Module) -> nn.Module:
    """Module of the same parameters that what is put on the original does not change."""
    return copy.copy(module)


def _bind(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    setattr(module, name, MethodType(function, module))
