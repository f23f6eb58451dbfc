"""Second stage of the detector: classification and box regression of the proposals (Girshick 2015; Lin et al. 2016,
section 4.2).

Shape letters: R RoIs over the batch, P proposals of an image, G its objects, K classes (label K is background).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import BoxHeadConfig, RulesConfig
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.boxes import batched_nms, clip_boxes, decode_boxes, encode_boxes, nonempty, scale_boxes
from maskrcnn.ops.matching import Matches, match_boxes, subsample
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth


class SampledRoIs(NamedTuple):
    """RoIs of one training image that the losses are computed on, objects first.

    boxes (P, 4); labels (P,), K where background; gt_index (P,) the object of each, meaningless for background.
    """

    boxes: Tensor
    labels: Tensor
    gt_index: Tensor

    def foreground(self, num_classes: int) -> SampledRoIs:
        keep = self.labels < num_classes
        return SampledRoIs(self.boxes[keep], self.labels[keep], self.gt_index[keep])


class Detections(NamedTuple):
    """Detections of one image, best first: boxes (N, 4) in the network's pixels, scores (N,), labels (N,), and the
    index (N,) of the proposal that each came from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    proposal_index: Tensor


class DetectionHead(Protocol):
    """Second stage as `MaskRCNN` sees it: a `BoxHead`, or a cascade of them. Its methods are `BoxHead`'s."""

    config: BoxHeadConfig
    num_classes: int

    def __call__(self, *args: Any, **how: Any) -> list[Detections]: ...
    def suppress(self, *args: Any, **how: Any) -> Tensor: ...
    def sample(self, *args: Any, **how: Any) -> list[SampledRoIs]: ...
    def loss(self, *args: Any, **how: Any) -> dict[str, Tensor]: ...


class BoxHead(nn.Module):
    """Box head: RoIAlign, optional convolutions, fully connected layers or the mean over the cells, class and box
    predictors.

    `iou_positive` and `box_weights` are the config's, except in a cascade, whose stages differ in them alone.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        config: BoxHeadConfig,
        rules: RulesConfig | None = None,
        *,
        iou_positive: float | None = None,
        box_weights: tuple[float, float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.rules, self.num_classes = config, rules or RulesConfig(), num_classes
        self.iou_positive = config.iou_positive if iou_positive is None else iou_positive
        self.box_weights = config.box_weights if box_weights is None else box_weights
        self.convs = conv_tower(channels, config.conv_channels, config.num_convs, config.norm)
        features = config.conv_channels if config.num_convs else channels
        if config.num_fcs:
            features *= config.pool_size**2
        self.fcs = nn.ModuleList()
        for _ in range(config.num_fcs):
            fc = nn.Linear(features, config.fc_channels)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
            self.fcs.append(fc)
            features = config.fc_channels
        self.class_predictor = nn.Linear(features, num_classes + 1)
        self.box_predictor = nn.Linear(features, 4 * (1 if config.class_agnostic else num_classes))
        for predictor, std in ((self.class_predictor, 0.01), (self.box_predictor, 0.001)):
            nn.init.normal_(predictor.weight, std=std)
            nn.init.zeros_(predictor.bias)

    def predict_rois(self, features: RoIFeatures, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict class_logits (R, K + 1) and box_deltas (R, K or 1, 4) of every image's boxes, in float32."""
        return self.predict_pooled(features.pool(boxes, self.config.pool_size))

    def predict_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict class_logits and box_deltas of RoIs pooled from the maps, (R, C, pool_size, pool_size)."""
        x = self.convs(x)
        x = x.flatten(1) if len(self.fcs) else x.mean((2, 3))
        for fc in self.fcs:
            x = F.relu_(fc(x))
        logits, deltas = self.class_predictor(x), self.box_predictor(x)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(dtype), deltas.to(dtype).unflatten(1, (-1, 4))

    def forward(
        self,
        features: RoIFeatures,
        proposals: list[Proposals],
        image_sizes: list[tuple[int, int]],
        score_threshold: float | None = None,
        original_sizes: list[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        """Detections of each image with a score above `score_threshold`, by default the config's.

        original_sizes: of the pictures, in whose pixels overlaps are measured where the config says so.
        """
        boxes = [p.boxes for p in proposals]
        logits, deltas = self.predict_rois(features, boxes)
        counts = [len(b) for b in boxes]
        return [
            self.detect(box, score, delta, size, score_threshold, original_size)
            for box, score, delta, size, original_size in zip(
                boxes,
                logits.softmax(1).split(counts),
                deltas.split(counts),
                image_sizes,
                original_sizes or image_sizes,
                strict=True,
            )
        ]

    def detect(
        self,
        boxes: Tensor,
        scores: Tensor,
        deltas: Tensor,
        size: tuple[int, int],
        threshold: float | None = None,
        original_size: tuple[int, int] | None = None,
    ) -> Detections:
        """Decode and select the best detections of one image of `size`, from RoIs (P, 4), their scores (P, K + 1) and
        box_deltas.
        """
        c = self.config
        threshold = c.score_threshold if threshold is None else threshold
        proposal, label = (scores[:, :-1] > threshold).nonzero(as_tuple=True)
        score = scores[proposal, label]
        delta = deltas[proposal, 0 if c.class_agnostic else label]
        box = decode_boxes(delta, boxes[proposal], self.box_weights, self.rules.limit_shrinking)
        box = clip_boxes(box, size)
        keep = torch.isfinite(box).all(1) & torch.isfinite(score)
        if self.rules.min_detection_side > 0:
            keep &= nonempty(box, self.rules.min_detection_side)
        box, score, label, proposal = box[keep], score[keep], label[keep], proposal[keep]
        # Rounding to whole pixels resizes height and width by slightly different factors.
        compared = scale_boxes(box, size, original_size or size) if self.rules.nms_in_original else box
        keep = self.suppress(compared, score, label)
        return Detections(box[keep], score[keep], label[keep], proposal[keep])

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Non-maximum suppression of one image's detections: indices of those kept, best first, at most
        `detections_per_image`.
        """
        c = self.config
        groups = torch.zeros_like(labels) if c.class_agnostic_nms else labels
        return batched_nms(boxes, scores, groups, c.nms_threshold)[: c.detections_per_image]

    @torch.no_grad()
    def sample(self, proposals: list[Proposals], targets: list[GroundTruth]) -> list[SampledRoIs]:
        """Choose each image's RoIs for the losses from its proposals and its ground-truth boxes."""
        c = self.config
        sampled = []
        for proposal, target in zip(proposals, targets, strict=True):
            boxes = torch.cat([proposal.boxes, target.boxes.to(proposal.boxes.dtype)])
            matches = self.match(boxes, target)
            foreground, background = subsample(
                matches.labels, c.num_samples, c.positive_fraction, target.seed
            )
            index = torch.cat([foreground, background])
            labels = torch.full_like(index, self.num_classes)
            if len(foreground):
                labels[: len(foreground)] = target.labels[matches.gt_index[foreground]]
            sampled.append(SampledRoIs(boxes[index], labels, matches.gt_index[index]))
        return sampled

    def match(self, boxes: Tensor, target: GroundTruth) -> Matches:
        """Match one image's RoIs, its proposals followed by its ground-truth boxes, to the ground truth."""
        iou = self.iou_positive
        if not self.rules.best_reassigns:
            return match_boxes(boxes, target.boxes, iou, iou)
        # The objects' own boxes would be the best of all.
        proposals = boxes[: len(boxes) - len(target)]
        matches = match_boxes(
            proposals, target.boxes, iou, iou, keep_best=True, min_best=iou, best_reassigns=True
        )
        own = torch.arange(len(target), device=boxes.device)
        return Matches(torch.cat([matches.gt_index, own]), torch.cat([matches.labels, torch.ones_like(own)]))

    def loss(
        self,
        features: RoIFeatures,
        sampled: list[SampledRoIs],
        targets: list[GroundTruth],
        image_sizes: list[tuple[int, int]],  # for a cascade, which moves the boxes
    ) -> dict[str, Tensor]:
        """Compute loss_cls and loss_box_reg of the sampled RoIs."""
        return self.losses(*self.predict_rois(features, [s.boxes for s in sampled]), sampled, targets)

    def losses(
        self, logits: Tensor, deltas: Tensor, sampled: list[SampledRoIs], targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Compute loss_cls and loss_box_reg from the class_logits and box_deltas of the sampled RoIs."""
        c = self.config
        labels = torch.cat([s.labels for s in sampled])
        normalizer = mean_over_processes(len(labels), logits.device).clamp(min=1)
        loss_cls = F.cross_entropy(logits, labels, reduction="sum")
        loss_box = deltas.sum() * 0
        foreground = (labels < self.num_classes).nonzero()[:, 0]
        if len(foreground):
            boxes = torch.cat([s.boxes for s in sampled])[foreground]
            gt_boxes = torch.cat(
                [
                    t.boxes[s.gt_index[s.labels < self.num_classes]]
                    for s, t in zip(sampled, targets, strict=True)
                ]
            )
            column = 0 if c.class_agnostic else labels[foreground]
            wanted = encode_boxes(boxes, gt_boxes.to(boxes.dtype), self.box_weights)
            loss_box = loss_box + F.smooth_l1_loss(
                deltas[foreground, column], wanted, reduction="sum", beta=c.smooth_l1_beta
            )
        return {
            "loss_cls": loss_cls * (c.loss_weight / normalizer),
            "loss_box_reg": loss_box * (c.loss_weight / normalizer),
        }
