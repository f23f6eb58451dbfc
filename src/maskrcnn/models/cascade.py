"""Cascade R-CNN: Cai and Vasconcelos 2017 (arXiv 1712.00726), with detectron2's semantics.

Each stage is a box head of its own, which sees the boxes of the stage before it and learns from objects that these
overlap better and better. At test time the classes' probabilities are the mean of all stages', the boxes the last's.

Shape letters: R RoIs over the batch, P RoIs of an image, K classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from maskrcnn.config import BoxHeadConfig, RulesConfig
from maskrcnn.models.box_head import BoxHead, Detections, SampledRoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.boxes import clip_boxes, decode_boxes, nonempty
from maskrcnn.ops.matching import match_boxes
from maskrcnn.structures import GroundTruth


class CascadeHead(nn.Module):
    """Cascade of box heads, with the interface of one `BoxHead`. Its boxes are class-agnostic."""

    def __init__(
        self, channels: int, num_classes: int, config: BoxHeadConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        assert config.cascade is not None
        self.config, self.num_classes = config, num_classes
        self.stages = nn.ModuleList(
            BoxHead(channels, num_classes, config, rules, iou_positive=iou, box_weights=weights)
            for iou, weights in zip(config.cascade.iou_positive, config.cascade.box_weights, strict=True)
        )

    def forward(
        self,
        features: RoIFeatures,
        proposals: list[Proposals],
        image_sizes: list[tuple[int, int]],
        score_threshold: float | None = None,
        original_sizes: list[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detections of each image with a score above `score_threshold`, by default the config's."""
        first, *later = self.heads
        boxes = [p.boxes for p in proposals]
        logits, deltas = first.predict_rois(features, boxes)
        scores = [logits.softmax(1)]
        for before, head in zip(self.heads, later, strict=False):
            boxes = _moved(before, boxes, deltas, image_sizes)
            logits, deltas = head.predict_rois(features, boxes)
            scores.append(logits.softmax(1))
        counts = [len(b) for b in boxes]
        mean = torch.stack(scores).mean(0).split(counts)
        return [
            self.heads[-1].detect(box, score, delta, size, score_threshold, original_size)
            for box, score, delta, size, original_size in zip(
                boxes,
                mean,
                deltas.split(counts),
                image_sizes,
                original_sizes or image_sizes,
                strict=True,
            )
        ]

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Non-maximum suppression of one image's detections by `BoxHead.suppress`; all stages have the same settings
        for it.
        """
        return self.heads[0].suppress(boxes, scores, labels)

    def sample(self, proposals: list[Proposals], targets: list[GroundTruth]) -> list[SampledRoIs]:
        """Choose each image's RoIs for the losses. Later stages keep these, with the boxes that they have moved to;
        the mask head learns from them unmoved.
        """
        return self.heads[0].sample(proposals, targets)

    def loss(
        self,
        features: RoIFeatures,
        sampled: list[SampledRoIs],
        targets: list[GroundTruth],
        image_sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Compute the losses of all stages: loss_cls_stage0, loss_box_reg_stage0, loss_cls_stage1, ..."""
        losses = {}
        for k, head in enumerate(self.heads):
            pooled = features.pool([s.boxes for s in sampled], self.config.pool_size)
            # The stages share the maps, and together have as much to say in them as one head.
            logits, deltas = head.predict_pooled(_ScaleGradient.apply(pooled, 1 / len(self.stages)))
            stage_losses = head.losses(logits, deltas, sampled, targets)
            losses |= {f"{name}_stage{k}": loss for name, loss in stage_losses.items()}
            if k + 1 < len(self.stages):
                boxes = _moved(head, [s.boxes for s in sampled], deltas.detach(), image_sizes)
                sampled = [self.rematch(k + 1, b, t) for b, t in zip(boxes, targets, strict=True)]
        return losses

    @torch.no_grad()
    def rematch(self, k: int, boxes: Tensor, target: GroundTruth) -> SampledRoIs:
        """Match one image's boxes again at stage `k`'s IoU. All but the empty ones stay; their labels and objects are
        the new match's.
        """
        iou = self.heads[k].iou_positive
        boxes = boxes[nonempty(boxes)]
        matches = match_boxes(boxes, target.boxes, iou, iou)
        labels = torch.full_like(matches.gt_index, self.num_classes)
        foreground = matches.labels == 1
        labels[foreground] = target.labels[matches.gt_index[foreground]]
        return SampledRoIs(boxes, labels, matches.gt_index)

    @property
    def heads(self) -> list[BoxHead]:
        """List of the stages, typed as box heads."""
        return cast("list[BoxHead]", list(self.stages))


def _moved(
    head: BoxHead, boxes: list[Tensor], deltas: Tensor, image_sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """Apply a stage's box_deltas (R, 1, 4) to every image's RoIs and clip them to the image: per image (P, 4)."""
    moved = decode_boxes(deltas[:, 0], torch.cat(boxes), head.box_weights, head.rules.limit_shrinking)
    counts = [len(b) for b in boxes]
    return [clip_boxes(b, size) for b, size in zip(moved.split(counts), image_sizes, strict=True)]


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
