"""Second stage of the detector: classification and box regression of the proposals (Girshick 2015; Lin et al. 2016,
section 4.2).

Shape letters: B images, R RoIs over the batch, P proposals and S sampled RoIs of an image, G its objects, D detections,
K classes (label K is background).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import BoxHeadConfig, RulesConfig
from maskrcnn.models.places import NOTHING, RoIs, best, take
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import Proposals
from maskrcnn.ops.boxes import clip_boxes, decode_boxes, encode_boxes, nonempty, scale_boxes
from maskrcnn.ops.class_scores import class_loss, class_scores
from maskrcnn.ops.giou import paired_giou
from maskrcnn.ops.matching import Matches, match_boxes, subsample
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.ops.suppression import suppress
from maskrcnn.ops.temperature import tempered
from maskrcnn.structures import GroundTruth

# Most candidates of an image, pairs of RoI and class, that are decoded where sizes are fixed: the best ones. TensorRT's
# TopK gives no more. Otherwise all of them are.
MAX_CANDIDATES = 3840


class SampledRoIs(NamedTuple):
    """RoIs of each training image that the losses are computed on, objects first.

    boxes (B, S, 4); labels (B, S), K where background, -1 in places that are not filled; gt_index (B, S) the object of
    each, and gt_boxes (B, S, 4) its box, meaningless for background. Objects are among the `first` places.
    """

    boxes: Tensor
    labels: Tensor
    gt_index: Tensor
    gt_boxes: Tensor
    first: int | None = None

    @property
    def valid(self) -> Tensor:
        """Mask of the filled places (B, S)."""
        return self.labels >= 0

    def foreground(self, num_classes: int) -> SampledRoIs:
        """Leave the objects' places filled only."""
        return self._replace(labels=torch.where(self.labels < num_classes, self.labels, -1))


class Detections(NamedTuple):
    """Detections of each image, best first: boxes (B, D, 4) in the network's pixels, scores (B, D), labels (B, D), the
    index (B, D) of the proposal that each came from, and valid (B, D), which of the D places are filled;
    num_candidates (B,): pairs of RoI and class above the score threshold.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    proposal_index: Tensor
    valid: Tensor
    num_candidates: Tensor


class DetectionHead(Protocol):
    """Second stage as `MaskRCNN` sees it: a `BoxHead`, or a cascade of them. Its methods are `BoxHead`'s."""

    config: BoxHeadConfig
    num_classes: int

    def __call__(self, *args: Any, **how: Any) -> Detections: ...
    def suppress(self, *args: Any, **how: Any) -> Tensor: ...
    def sample(self, *args: Any, **how: Any) -> SampledRoIs: ...
    def loss(self, *args: Any, **how: Any) -> tuple[dict[str, Tensor], list[SampledRoIs]]: ...


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

    def predict_rois(self, features: RoIFeatures, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Predict class_logits (R, K + 1) and box_deltas (R, K or 1, 4) of RoIs, in float32."""
        return self.predict_pooled(features.pool(rois, self.config.pool_size))

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
        proposals: Proposals,
        image_sizes: Tensor,
        score_threshold: float | None = None,
        original_sizes: Tensor | None = None,
    ) -> Detections:
        """Detections of each image, of sizes (B, 2), with a score above `score_threshold`, by default the config's.

        original_sizes: (B, 2) of the pictures, in whose pixels overlaps are measured where the config says so.
        """
        rois = features.rois(proposals.boxes, proposals.valid)
        logits, deltas = self.predict_rois(features, rois)
        scores = rois.spread(class_scores(logits, self.config.scores))
        scores = torch.where(proposals.valid[..., None], scores, 0)
        how = (image_sizes, score_threshold, original_sizes, features.fixed_size)
        return self.detect(proposals.boxes, scores, rois.spread(deltas), *how)

    def detect(
        self,
        boxes: Tensor,
        scores: Tensor,
        deltas: Tensor,
        sizes: Tensor,
        threshold: float | None = None,
        original_sizes: Tensor | None = None,
        fixed_size: bool = False,
    ) -> Detections:
        """Decode and select the best detections of images of `sizes`, from RoIs (B, P, 4), their scores (B, P, K + 1)
        and box_deltas (B, P, K or 1, 4).
        """
        c, K = self.config, self.num_classes
        threshold = c.score_threshold if threshold is None else threshold
        score = tempered(scores[..., :K].flatten(1), c.temperature)
        counts = (score > threshold).sum(1)
        limit = min(MAX_CANDIDATES, score.shape[1]) if fixed_size else max(1, int(counts.max()))
        score = torch.where(score > threshold, score, NOTHING)
        candidate = best(score, limit)[1].sort(dim=1).values  # equal scores: as proposals and classes come
        score, proposal, label = take(score, candidate), candidate // K, candidate % K
        delta = take(deltas.flatten(1, 2), proposal if c.class_agnostic else candidate)
        box = decode_boxes(delta, take(boxes, proposal), self.box_weights, self.rules.limit_shrinking)
        box = clip_boxes(box, sizes)
        keep = torch.isfinite(box).all(-1)
        if self.rules.min_detection_side > 0:
            keep = keep & nonempty(box, self.rules.min_detection_side)
        score = torch.where(keep, score, NOTHING)
        compared = box
        if self.rules.nms_in_original and original_sizes is not None:
            # Rounding to whole pixels resizes height and width by slightly different factors.
            compared = scale_boxes(box, sizes, original_sizes)
        chosen = self.suppress(compared, score, label)
        valid = chosen >= 0
        box = torch.where(valid[..., None], take(box, chosen), 0)
        score, label, proposal = (torch.where(valid, take(x, chosen), 0) for x in (score, label, proposal))
        return Detections(box, score, label, proposal, valid, counts)

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Non-maximum suppression of each image's detections (B, N): indices (B, D) of those kept, best first, -1 after
        the last; D is `detections_per_image`.
        """
        c = self.config
        groups, count = (torch.zeros_like(labels), 1) if c.class_agnostic_nms else (labels, self.num_classes)
        return suppress(boxes, scores, groups, count, c.nms_threshold, c.detections_per_image)

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: list[GroundTruth]) -> SampledRoIs:
        """Choose each image's RoIs for the losses from its proposals and its ground-truth boxes."""
        c = self.config
        S = min(c.num_samples, proposals.boxes.shape[1] + max(len(target) for target in targets))
        sampled = []
        for proposed, valid, target in zip(proposals.boxes, proposals.valid, targets, strict=True):
            boxes = torch.cat([proposed, target.boxes.to(proposed.dtype)])
            there = F.pad(valid, (0, len(target)), value=True)
            matches = self.match(boxes, target)
            labels = torch.where(there, matches.labels, -1)
            number = there.cumsum(0) - 1  # of a box among those that there are, by which it is drawn
            index, kind = subsample(labels, c.num_samples, c.positive_fraction, target.seed, number)
            index, kind = F.pad(index, (0, S - len(index))), F.pad(kind, (0, S - len(kind)), value=-1)
            sampled.append(assigned(boxes[index], kind, matches.gt_index[index], target, self.num_classes))
        fields = (torch.stack(field) for field in zip(*sampled, strict=True))
        return SampledRoIs(*fields, first=min(S, int(c.num_samples * c.positive_fraction)))

    def match(self, boxes: Tensor, target: GroundTruth) -> Matches:
        """Match one image's RoIs, its proposals followed by its ground-truth boxes, to the ground truth."""
        iou = self.iou_positive
        if not self.rules.best_reassigns or self.config.cascade is not None:
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
        sampled: SampledRoIs,
        targets: list[GroundTruth],
        image_sizes: Tensor,  # for a cascade, which moves the boxes
    ) -> tuple[dict[str, Tensor], list[SampledRoIs]]:
        """Compute loss_cls and loss_box_reg of the sampled RoIs; and name the RoIs of each stage, here one, from
        which the other heads learn: with `train_on_pred_boxes` at the boxes predicted of them.
        """
        rois = features.rois(sampled.boxes, sampled.valid)
        logits, deltas = self.predict_rois(features, rois)
        losses = self.losses(logits, deltas, rois, sampled, [target.seed for target in targets])
        if self.config.train_on_pred_boxes:
            own = rois.spread(self.own_deltas(deltas.detach(), rois.at(sampled.labels)))
            moved = decode_boxes(own, sampled.boxes, self.box_weights, self.rules.limit_shrinking)
            sampled = sampled._replace(boxes=moved)
        return losses, [sampled]

    def own_deltas(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Choose the box_deltas of the class labels (R,): (R, K or 1, 4) -> (R, 4), any of background."""
        column = labels.clamp(0, 0 if self.config.class_agnostic else self.num_classes - 1)
        return deltas.gather(1, column[:, None, None].expand(-1, 1, 4))[:, 0]

    def losses(
        self, logits: Tensor, deltas: Tensor, rois: RoIs, sampled: SampledRoIs, seeds: list[int]
    ) -> dict[str, Tensor]:
        """Compute loss_cls and loss_box_reg from the class_logits and box_deltas of the RoIs among the sampled."""
        c = self.config
        labels = rois.at(sampled.labels)
        normalizer = mean_over_processes((labels >= 0).sum(), logits.device).clamp(min=1)
        draw = (rois.rows // sampled.labels.shape[1], c.federated_classes, c.class_image_counts, seeds)
        loss_cls = class_loss(logits, labels, c.scores, *draw)
        foreground = ((labels >= 0) & (labels < self.num_classes))[:, None]
        boxes, gt_boxes = rois.at(sampled.boxes), rois.at(sampled.gt_boxes)
        own = torch.where(foreground, self.own_deltas(deltas, labels), 0)
        if c.box_loss == "giou":
            found = decode_boxes(own, boxes, self.box_weights, self.rules.limit_shrinking)
            loss_box = torch.where(foreground[:, 0], 1 - paired_giou(found, gt_boxes), 0).sum()
        else:
            wanted = torch.where(foreground, encode_boxes(boxes, gt_boxes, self.box_weights), 0)
            loss_box = F.smooth_l1_loss(own, wanted, reduction="sum", beta=c.smooth_l1_beta)
        return {
            "loss_cls": loss_cls * (c.loss_weight / normalizer),
            "loss_box_reg": loss_box * (c.loss_weight * c.box_loss_weight / normalizer),
        }


def assigned(
    boxes: Tensor, kind: Tensor, gt_index: Tensor, target: GroundTruth, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fields of one image's `SampledRoIs`, of boxes (S, 4), their kind (S,), as `Matches.labels`, and objects (S,)."""
    labels = torch.where(kind == 0, num_classes, -1)
    gt_boxes = torch.zeros_like(boxes)
    if len(target):
        labels = torch.where(kind == 1, target.labels[gt_index], labels)
        gt_boxes = target.boxes[gt_index].to(boxes.dtype)
    boxes = torch.where((kind >= 0)[:, None], boxes, 0)
    return boxes, labels, gt_index, gt_boxes
