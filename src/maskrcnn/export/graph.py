"""A model as one graph of fixed-size tensors, for export: pictures in, detections with masks out.

The network's own modules compute; between them proposals and detections have a fixed number of places, of which the
first are filled. Nothing has a shape that depends on data, and sizes of pictures and batches may vary.

Shape letters: B images, L levels, P proposals, D detections, K classes, M mask cells a side, N candidates.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from maskrcnn.models.box_head import BoxHead
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.pooling import CANONICAL_LEVEL, CANONICAL_SIZE
from maskrcnn.models.rpn import BOX_WEIGHTS
from maskrcnn.ops.boxes import box_area, decode_boxes
from maskrcnn.ops.roi_align import roi_align
from maskrcnn.ops.suppression import suppress

NOTHING = -math.inf  # score of a place that is not filled


class Graph(nn.Module):
    """Mask R-CNN over padded batches.

    forward: images (B, 3, H, W) float32, RGB 0..255, at the network's size and padded with zeros, H and W multiples of
    the model's `size_divisor`; image_sizes (B, 2) int64, the (h, w) of each without padding ->
    boxes (B, D, 4) in the network's pixels, scores (B, D), labels (B, D) int64, masks (B, D, M, M) probabilities where
    the model has a mask head, counts (B,) int64: places from `counts` on are zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model
        c = model.config.input
        self.register_buffer("mean", torch.tensor(c.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(c.pixel_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        model = self.model
        maps = model.backbone(self.normalise(images, image_sizes))
        proposals = self.propose(maps, image_sizes)
        boxes, scores, labels = self.detect(maps, proposals, image_sizes)
        filled = scores > NOTHING
        counts = filled.sum(1)
        out = {
            "boxes": torch.where(filled[..., None], boxes, 0.0),
            "scores": torch.where(filled, scores, 0.0),
            "labels": torch.where(filled, labels, 0),
        }
        if model.mask_head is not None:
            masks = self.masks(maps, out["boxes"], out["labels"])
            out["masks"] = torch.where(filled[..., None, None], masks, 0.0)
        out["counts"] = counts
        return out

    def normalise(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation inside the pictures; the padding stays zero."""
        y = torch.arange(images.shape[2], device=images.device)[None, :, None]
        x = torch.arange(images.shape[3], device=images.device)[None, None, :]
        inside = (y < image_sizes[:, :1, None]) & (x < image_sizes[:, 1:, None])
        pixels = images if self.model.config.input.channel_order == "RGB" else images.flip(1)
        pixels = torch.where(inside[:, None], (pixels - self.mean) / self.std, 0.0)
        return pixels.to(self.model.dtype)

    def propose(self, maps: list[Tensor], image_sizes: Tensor) -> Tensor:
        """Propose boxes (B, P, 4), best first; a place that is not filled has a box without extent."""
        rpn, c, rules = self.model.rpn, self.model.config.rpn, self.model.config.rules
        boxes, scores = [], []
        for anchor, logit, delta in zip(rpn.anchors(maps), *rpn.head(maps), strict=True):
            score, index = best(logit, c.pre_nms_topk_test)
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            box = clip(decode_boxes(delta, anchor[index], BOX_WEIGHTS, rules.limit_shrinking), image_sizes)
            scores.append(torch.where(_nonempty(box, rules.min_proposal_side), score, NOTHING))
            boxes.append(box)
        box, score = torch.stack(boxes, 1), torch.stack(scores, 1)  # (B, L, N)
        keep = suppress(box.flatten(0, 1), score.flatten(0, 1), c.nms_threshold).view_as(score)
        score = torch.where(keep, score, NOTHING).flatten(1)
        score, index = best(score, c.post_nms_topk_test)
        box = box.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
        return torch.where((score > NOTHING)[..., None], box, 0.0)

    def detect(
        self, maps: list[Tensor], proposals: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects among the proposals (B, P, 4): boxes (B, D, 4), scores (B, D), labels (B, D), best first."""
        head = self.model.box_head
        heads: list[BoxHead] = head.heads if isinstance(head, CascadeHead) else [cast("BoxHead", head)]
        boxes, scores, deltas = proposals, [], proposals
        for i, stage in enumerate(heads):
            logits, deltas = self.predict(stage, maps, boxes)
            scores.append(logits.softmax(-1))
            if i + 1 < len(heads):
                moved = decode_boxes(deltas[:, :, 0], boxes, stage.box_weights, stage.rules.limit_shrinking)
                boxes = clip(moved, image_sizes)
        mean = scores[0] if len(scores) == 1 else torch.stack(scores).mean(0)
        real = _nonempty(proposals, 0.0)
        return self.select(heads[-1], boxes, torch.where(real[..., None], mean, 0.0), deltas, image_sizes)

    def predict(self, head: BoxHead, maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict class_logits (B, P, K + 1) and box_deltas (B, P, K or 1, 4) of RoIs (B, P, 4)."""
        logits, deltas = head.predict_pooled(self.pool(maps, boxes, head.config.pool_size))
        shape = (boxes.shape[0], boxes.shape[1])
        return logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def select(
        self, head: BoxHead, boxes: Tensor, scores: Tensor, deltas: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode, threshold and suppress (B, P) RoIs with scores (B, P, K + 1) to the D best detections."""
        c = head.config
        K = head.num_classes
        score = scores[..., :K].transpose(1, 2)  # (B, K, P)
        box = decode_boxes(
            deltas.transpose(1, 2), boxes[:, None], head.box_weights, head.rules.limit_shrinking
        )  # (B, K or 1, P, 4)
        box = clip(box, image_sizes[:, None])
        finite = torch.isfinite(box).all(-1) & torch.isfinite(score)
        if head.rules.min_detection_side > 0:
            finite = finite & _nonempty(box, head.rules.min_detection_side)
        score = torch.where(finite & (score > c.score_threshold), score, NOTHING)
        box = torch.nan_to_num(box).expand(-1, K, -1, -1)
        groups = (0, 1) if not c.class_agnostic_nms else (1, 2)
        keep = suppress(
            box.flatten(*groups) if not c.class_agnostic_nms else box.flatten(1, 2),
            score.flatten(*groups) if not c.class_agnostic_nms else score.flatten(1, 2),
            c.nms_threshold,
        ).view_as(score)
        label = torch.arange(K, device=score.device)[:, None].expand_as(score).flatten(1)
        score, index = best(torch.where(keep, score, NOTHING).flatten(1), c.detections_per_image)
        box = box.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
        label = label.gather(1, index)
        # A box without extent is no detection; the others move up.
        score, index = best(torch.where(_nonempty(box, 0.0), score, NOTHING), c.detections_per_image)
        return box.gather(1, index[..., None].expand(-1, -1, 4)), score, label.gather(1, index)

    def pool(self, maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Pool RoIs (B, R, 4) from the level that suits each: (B * R, C, size, size).

        Every level pools all RoIs, those of other levels shrunk to a point, which costs no sample and gives zero.
        """
        model, c = self.model, self.model.config.rules
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].to(boxes.dtype)
        rois = torch.cat([image.expand(-1, boxes.shape[1], 1), boxes], 2).flatten(0, 1)
        strides = model.backbone.strides[: model.backbone.num_roi_levels]
        if len(strides) == 1:
            pooled = roi_align(
                maps[0], rois, size if model.res5 is None else 2 * size, 1 / strides[0], 0, True
            )
            return pooled if model.res5 is None else model.res5(pooled)
        levels = torch.floor(
            CANONICAL_LEVEL + torch.log2(box_area(rois[:, 1:]).sqrt() / CANONICAL_SIZE + c.level_epsilon)
        ).clamp(math.log2(strides[0]), math.log2(strides[-1]))
        total = None
        for feature, stride in zip(maps, strides, strict=False):
            here = (levels == math.log2(stride))[:, None]
            own = torch.cat([rois[:, :1], torch.where(here, rois[:, 1:], 0.0)], 1)
            pooled = roi_align(feature, own, size, 1 / stride, c.roi_sampling_ratio, c.roi_aligned)
            pooled = torch.where(here[..., None, None], pooled, 0.0)
            total = pooled if total is None else total + pooled
        assert total is not None
        return total

    def masks(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (B, D, M, M) of detections (B, D, 4) with labels (B, D)."""
        head = self.model.mask_head
        assert head is not None
        logits = head.predict_pooled(self.pool(maps, boxes, head.config.pool_size), labels.flatten())
        return logits.sigmoid().unflatten(0, (boxes.shape[0], boxes.shape[1]))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Best `count` of (B, N) scores, (B, count) each: the scores and their places; NOTHING at place 0 beyond N."""
    fill = scores.new_full((1, 1), NOTHING).expand(scores.shape[0], count)
    score, index = torch.cat([scores, fill], 1).topk(count, dim=1)
    return score, torch.where(index < scores.shape[1], index, 0)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes (B, ..., N, 4) to pictures of sizes (B, ..., 2)."""
    limit = sizes.flip(-1).to(boxes.dtype).repeat(*[1] * (sizes.dim() - 1), 2)[..., None, :]
    return torch.minimum(boxes.clamp(min=0), limit)


def _nonempty(boxes: Tensor, min_side: float) -> Tensor:
    size = boxes[..., 2:] - boxes[..., :2]
    wide = size >= min_side if min_side > 0 else size > 0
    return wide.all(-1) & torch.isfinite(boxes).all(-1)
