"""Region proposal network: Ren et al. 2015 (arXiv 1506.01497), on a feature pyramid.

Shape letters: B images, L levels, A anchors a place, H x W places of a level, G objects, P proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv
from maskrcnn.config import RPNConfig, RulesConfig
from maskrcnn.models.anchors import cell_anchors, grid_anchors
from maskrcnn.models.places import NOTHING, best, take
from maskrcnn.models.sparse_rpn import predict_at
from maskrcnn.ops.anchor_rules import in_the_loss
from maskrcnn.ops.boxes import clip_boxes, decode_boxes, encode_boxes, nonempty
from maskrcnn.ops.matching import Matches, match_boxes, subsample
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.ops.suppression import suppress
from maskrcnn.structures import GroundTruth

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Proposals(NamedTuple):
    """Proposals of each image, best first: boxes (B, P, 4) in the network's pixels, objectness_logits (B, P), and
    valid (B, P), which of the P places are filled.
    """

    boxes: Tensor
    objectness_logits: Tensor
    valid: Tensor


class RPNHead(nn.Module):
    """RPN head shared by all levels: 3x3 convolutions, nearly always one, then objectness and box deltas."""

    def __init__(self, channels: int, num_anchors: int, num_convs: int = 1) -> None:
        super().__init__()
        convs = [Conv(channels, channels, 3, relu=True) for _ in range(num_convs)]
        self.conv = convs[0] if num_convs == 1 else nn.Sequential(*convs)
        self.objectness = Conv(channels, num_anchors, 1)
        self.deltas = Conv(channels, 4 * num_anchors, 1)
        for conv in (*convs, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict from L maps (B, C, H, W): objectness_logits L x (B, H * W * A), box_deltas L x (B, H * W * A, 4),
        float32 at least, as scores and boxes are compared and decoded.
        """
        logits, deltas, real = [], [], torch.promote_types(features[0].dtype, torch.float32)
        for feature in features:
            x = self.conv(feature)
            logits.append(self.objectness(x).to(real).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).to(real).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return logits, deltas


class RPN(nn.Module):
    def __init__(
        self, channels: int, strides: tuple[int, ...], config: RPNConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.rules = config, rules or RulesConfig()
        self.strides = strides
        self.head = RPNHead(channels, len(config.sizes[0]) * len(config.aspect_ratios), config.num_convs)

    def anchors(self, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level, in the network's pixels: L x (H * W * A, 4).

        torchvision's have whole corners, and lie as far apart as a level's places fit into the picture: those of P6 a
        little closer than 64 pixels where its side is no multiple of that.
        """
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        height, width = (side * self.strides[0] for side in features[0].shape[2:])
        anchors = []
        for feature, stride, sizes in zip(features, self.strides, self.config.sizes, strict=True):
            cell = cell_anchors(sizes, self.config.aspect_ratios)
            cell = cell.to(feature.device, dtype, non_blocking=True)
            size = (feature.shape[2], feature.shape[3])
            if self.rules.anchors == "torchvision":
                anchors.append(grid_anchors(cell.round(), size, (height // size[0], width // size[1])))
            else:
                anchors.append(grid_anchors(cell, size, stride))
        return anchors

    def forward(self, features: list[Tensor], image_sizes: Tensor) -> Proposals:
        """Propose boxes for each image, of sizes (B, 2), at test time."""
        logits, deltas = self.head(features)
        c = self.config
        return self.propose(
            self.anchors(features), logits, deltas, image_sizes, c.pre_nms_topk_test, c.post_nms_topk_test
        )

    def loss(
        self, features: list[Tensor], image_sizes: Tensor, targets: list[GroundTruth]
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Propose boxes for each image in training, and compute the two losses."""
        with torch.no_grad():
            logits, deltas = self.head(features)
        anchors = self.anchors(features)
        c = self.config
        proposals = self.propose(
            anchors, logits, deltas, image_sizes, c.pre_nms_topk_train, c.post_nms_topk_train
        )
        return proposals, self._losses(torch.cat(anchors), features, image_sizes, targets)

    @torch.no_grad()
    def propose(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: Tensor,
        pre_nms_topk: int,
        post_nms_topk: int,
    ) -> Proposals:
        """Decode the best anchors of each level, suppress overlaps within a level, keep the best of all."""
        boxes, scores, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, index = best(logit, pre_nms_topk)
            delta = take(delta, index)
            boxes.append(decode_boxes(delta, anchor[index], BOX_WEIGHTS, self.rules.limit_shrinking))
            scores.append(score)
            levels.append(torch.full_like(index, level))
        box, score = clip_boxes(torch.cat(boxes, 1), image_sizes), torch.cat(scores, 1)
        score = torch.where(nonempty(box, self.rules.min_proposal_side), score, NOTHING)
        level, count = torch.cat(levels, 1), len(levels)
        index = suppress(box, score, level, count, self.config.nms_threshold, post_nms_topk)
        valid = index >= 0
        box = torch.where(valid[..., None], take(box, index), 0)
        return Proposals(box, torch.where(valid, take(score, index), 0), valid)

    def match(self, anchors: Tensor, size: Tensor, target: GroundTruth) -> Matches:
        """Match one image's anchors to its objects, for the losses. size: its (H, W)."""
        c = self.config
        there = in_the_loss(anchors, size, self.strides, self.rules)
        if there is not None:
            anchors = torch.where(there[:, None], anchors, 0)  # without extent, which meets no object
        matches = match_boxes(
            anchors,
            target.boxes,
            c.iou_negative,
            c.iou_positive,
            keep_best=True,
            min_best=self.rules.iou_best,
            best_reassigns=self.rules.best_reassigns,
        )
        if there is None:
            return matches
        return Matches(matches.gt_index, torch.where(there, matches.labels, -1))

    def _losses(
        self, anchors: Tensor, features: list[Tensor], image_sizes: Tensor, targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        c = self.config
        indices, labels, wanted = [], [], []
        for size, target in zip(image_sizes, targets, strict=True):
            matches = self.match(anchors, size, target)
            index, label = subsample(matches.labels, c.num_samples, c.positive_fraction, target.seed)
            gt_boxes = target.boxes[matches.gt_index[index]] if len(target) else anchors[index]
            indices.append(index)
            labels.append(label)
            wanted.append(encode_boxes(anchors[index], gt_boxes, BOX_WEIGHTS))
        label, index, head = torch.stack(labels), torch.stack(indices), self.head
        logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, index)
        loss_cls = F.binary_cross_entropy_with_logits(
            logits, label.clamp(min=0).to(logits.dtype), (label >= 0).to(logits.dtype), reduction="sum"
        )
        positive = (label == 1)[..., None]
        # Boxes without extent, to be regressed from or to, give no number; no such anchor is an object's.
        loss_loc = F.smooth_l1_loss(
            torch.where(positive, deltas, 0),
            torch.where(positive, torch.stack(wanted), 0),
            reduction="sum",
            beta=c.smooth_l1_beta,
        )
        normalizer: float | Tensor = c.num_samples * len(targets)
        if self.rules.normalize_by == "sampled":  # as MMDetection counts: of each kind one at least
            counts = torch.stack([(label == 1).sum(1), (label == 0).sum(1)]).clamp(min=1)
            normalizer = mean_over_processes(counts.sum(), logits.device)
        return {
            "loss_rpn_cls": loss_cls * (c.loss_weight / normalizer),
            "loss_rpn_loc": loss_loc * (c.loss_weight / normalizer),
        }
