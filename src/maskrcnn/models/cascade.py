"""Cascade R-CNN: Cai and Vasconcelos 2017 (arXiv 1712.00726), with detectron2's semantics or MMDetection's.

Each stage is a box head of its own, which sees the boxes of the stage before it and learns from objects that these
overlap better and better. At test time the classes' probabilities are the mean of all stages', MMDetection's
those of their mean logits, and the boxes the last stage's.

Shape letters: B images, R RoIs over the batch, P or S RoIs of an image, K classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from maskrcnn.config import BoxHeadConfig, RulesConfig
from maskrcnn.models.box_head import BoxHead, Detections, SampledRoIs, assigned
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.boxes import clip_boxes, decode_boxes, nonempty
from maskrcnn.ops.class_scores import class_scores
from maskrcnn.ops.matching import match_boxes
from maskrcnn.structures import GroundTruth


class CascadeHead(nn.Module):
    """Cascade of box heads, with the interface of one `BoxHead`. A box moves by the deltas of the class that the RoI
    most looks like, or by the only ones.
    """

    def __init__(
        self, channels: int, num_classes: int, config: BoxHeadConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        assert config.cascade is not None
        self.config, self.num_classes = config, num_classes
        self.of_mmdetection = config.cascade.rules == "mmdetection"
        self.stages = nn.ModuleList(
            BoxHead(channels, num_classes, config, rules, iou_positive=iou, box_weights=weights)
            for iou, weights in zip(config.cascade.iou_positive, config.cascade.box_weights, strict=True)
        )

    def forward(
        self,
        features: RoIFeatures,
        proposals: Proposals,
        image_sizes: Tensor,
        score_threshold: float | None = None,
        original_sizes: Tensor | None = None,
    ) -> Detections:
        """Detections of each image with a score above `score_threshold`, by default the config's."""
        kind = self.config.scores
        boxes, scores, deltas, own = proposals.boxes, [], torch.zeros(()), torch.zeros(())
        for k, head in enumerate(self.heads):
            if k > 0:
                boxes = _moved(self.heads[k - 1], boxes, own, image_sizes)
            rois = features.rois(boxes, proposals.valid)
            logits, deltas = head.predict_rois(features, rois)
            scores.append(rois.spread(logits if self.of_mmdetection else class_scores(logits, kind)))
            if k + 1 < len(self.stages):
                own = rois.spread(self.own_deltas(logits, deltas))
            else:
                deltas = rois.spread(deltas)
        mean = torch.stack(scores).mean(0)
        mean = class_scores(mean, kind) if self.of_mmdetection else mean
        mean = torch.where(proposals.valid[..., None], mean, 0)
        how = (image_sizes, score_threshold, original_sizes, features.fixed_size)
        return self.heads[-1].detect(boxes, mean, deltas, *how)

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Non-maximum suppression of each image's detections by `BoxHead.suppress`; all stages have the same settings
        for it.
        """
        return self.heads[0].suppress(boxes, scores, labels)

    def sample(self, proposals: Proposals, targets: list[GroundTruth]) -> SampledRoIs:
        """Choose each image's RoIs for the losses of the first stage. detectron2's later stages keep these, with the
        boxes that they have moved to, and its mask head learns from them unmoved; MMDetection's draw anew.
        """
        return self.heads[0].sample(proposals, targets)

    def loss(
        self, features: RoIFeatures, sampled: SampledRoIs, targets: list[GroundTruth], image_sizes: Tensor
    ) -> tuple[dict[str, Tensor], list[SampledRoIs]]:
        """Compute the losses of all stages, loss_cls_stage0, loss_box_reg_stage0, loss_cls_stage1 and so on; and name
        the RoIs of each.
        """
        assert self.config.cascade is not None
        losses, stages = {}, [sampled]
        for k, (head, weight) in enumerate(zip(self.heads, self.config.cascade.loss_weights, strict=True)):
            sampled = stages[k]
            rois = features.rois(sampled.boxes, sampled.valid)
            pooled = features.pool(rois, self.config.pool_size)
            if not self.of_mmdetection:
                # The stages share the maps, and together have as much to say in them as one head.
                pooled = _ScaleGradient.apply(pooled, 1 / len(self.stages))
            logits, deltas = head.predict_pooled(pooled)
            seeds = [target.seed + k for target in targets]
            stage_losses = head.losses(logits, deltas, rois, sampled, seeds)
            losses |= {f"{name}_stage{k}": loss * weight for name, loss in stage_losses.items()}
            if k + 1 < len(self.stages):
                own = self.own_deltas(logits.detach(), deltas.detach(), rois.at(sampled.labels))
                boxes = _moved(head, sampled.boxes, rois.spread(own), image_sizes)
                if self.of_mmdetection:
                    stages.append(self.resample(k + 1, boxes, sampled, targets))
                else:
                    stages.append(self.rematch(k + 1, boxes, sampled.valid, targets))
        return losses, stages

    @torch.no_grad()
    def resample(
        self, k: int, boxes: Tensor, sampled: SampledRoIs, targets: list[GroundTruth]
    ) -> SampledRoIs:
        """Draw the RoIs of stage `k` from the boxes (B, S, 4) that those of the stage before moved to, but for the
        objects' own boxes, which are added again.
        """
        own = [
            (before[:, None] == target.boxes.to(before.dtype)).all(2).any(1)
            for before, target in zip(sampled.boxes, targets, strict=True)
        ]
        valid = sampled.valid & ~torch.stack(own) & nonempty(boxes)
        return self.heads[k].sample(Proposals(boxes, torch.zeros_like(boxes[..., 0]), valid), targets)

    @torch.no_grad()
    def rematch(self, k: int, boxes: Tensor, valid: Tensor, targets: list[GroundTruth]) -> SampledRoIs:
        """Match every image's boxes (B, S, 4) again at stage `k`'s IoU. All but the empty ones stay; their labels and
        objects are the new match's.
        """
        iou, rematched = self.heads[k].iou_positive, []
        valid = valid & nonempty(boxes)
        for box, there, target in zip(boxes, valid, targets, strict=True):
            matches = match_boxes(box, target.boxes, iou, iou)
            kind = torch.where(there, matches.labels, -1)
            rematched.append(assigned(box, kind, matches.gt_index, target, self.num_classes))
        boxes, labels, gt_index, gt_boxes = (torch.stack(field) for field in zip(*rematched, strict=True))
        return SampledRoIs(boxes, labels, gt_index, gt_boxes)

    def own_deltas(self, logits: Tensor, deltas: Tensor, labels: Tensor | None = None) -> Tensor:
        """Choose each RoI's box_deltas, (R, K or 1, 4) -> (R, 4): the only ones, or those of its class: the true one of
        an object, else the likeliest but background.
        """
        if self.config.class_agnostic:
            return deltas[:, 0]
        K = self.num_classes
        own = logits[:, :K].argmax(1)
        if labels is not None:
            own = torch.where((labels >= 0) & (labels < K), labels, own)
        return deltas.gather(1, own[:, None, None].expand(-1, 1, 4))[:, 0]

    @property
    def heads(self) -> list[BoxHead]:
        """List of the stages, typed as box heads."""
        return cast("list[BoxHead]", list(self.stages))


def _moved(head: BoxHead, boxes: Tensor, deltas: Tensor, image_sizes: Tensor) -> Tensor:
    """Apply a stage's box_deltas (B, P, 4) to the RoIs (B, P, 4) and clip them to their images."""
    moved = decode_boxes(deltas, boxes, head.box_weights, head.rules.limit_shrinking)
    return clip_boxes(moved, image_sizes)


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
