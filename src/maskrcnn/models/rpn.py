"""Region proposal network: Ren et al. 2015 (arXiv 1506.01497), on a feature pyramid.

Shape letters: B images, L levels, A anchors a place, H x W places of a level, G objects, P proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import Conv
from maskrcnn.config import RPNConfig
from maskrcnn.models.anchors import cell_anchors, grid_anchors
from maskrcnn.ops import winograd
from maskrcnn.ops.boxes import batched_nms, clip_boxes, decode_boxes, encode_boxes, nonempty
from maskrcnn.ops.matching import Matches, match_boxes, subsample
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Proposals(NamedTuple):
    """Proposals of one image: boxes (P, 4) in the network's pixels and their objectness_logits (P,), best first."""

    boxes: Tensor
    objectness_logits: Tensor


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
        """Predict from L maps (B, C, H, W): objectness_logits L x (B, H * W * A), box_deltas L x (B, H * W * A, 4)."""
        num_anchors = len(self.objectness.weight)
        # One pass over the map for both predictions.
        weight = torch.cat([self.objectness.weight, self.deltas.weight])
        bias = torch.cat([self._bias(self.objectness), self._bias(self.deltas)])
        logits, deltas = [], []
        for feature in features:
            x = self._predict(feature, weight, bias)
            # Scores and boxes are compared and decoded: float32 at least.
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            logits.append(x[..., :num_anchors].flatten(1))
            deltas.append(x[..., num_anchors:].reshape(len(x), -1, 4))
        return logits, deltas

    def _predict(self, feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Predict objectness and box deltas of one map: (B, C, H, W) -> (B, H, W, 5A)."""
        conv = self.conv
        if (
            torch.is_grad_enabled()
            or not isinstance(conv, Conv)
            or not winograd.applies(feature, conv.weight)
        ):
            return F.conv2d(conv(feature), weight, bias).permute(0, 2, 3, 1)
        out = feature.new_empty(len(feature), *feature.shape[2:], len(weight))
        for where, x in winograd.strips(feature, conv.weight, conv.bias, relu=True):
            out[where] = F.conv2d(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)
        return out

    def at(self, features: list[Tensor], image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Predict at S sampled anchors only, for the loss: logits (S,) and deltas (S, 4).

        image: (S,) of each; index: (S,) among the anchors of its image's levels. The loss touches a few hundred of
        some 200,000 anchors, so the gradient of the dense maps is zero nearly everywhere; going backward through
        their convolutions would be a seventh of a training step on a CPU.
        """
        conv = self.conv
        if isinstance(conv, nn.Sequential):  # only the last can do with a few places
            features = [conv[:-1](feature) for feature in features]
            conv = conv[-1]
        assert isinstance(conv, Conv)
        num_anchors = len(self.objectness.weight)
        place, anchor = index.div(num_anchors, rounding_mode="floor"), index % num_anchors
        rows, order, first = [], [], 0
        for feature in features:
            count = feature.shape[2] * feature.shape[3]
            here = ((place >= first) & (place < first + count)).nonzero()[:, 0]
            rows.append(_neighbourhoods(feature, image[here], place[here] - first))
            order.append(here)
            first += count
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 3 * 3 * C)
        x = F.relu_(F.linear(torch.cat(rows), weight, self._bias(conv)))[torch.cat(order).argsort()]
        logits = self.objectness.weight[:, :, 0, 0], self._bias(self.objectness)
        deltas = self.deltas.weight.view(num_anchors, 4, -1), self._bias(self.deltas).view(num_anchors, 4)
        logit = torch.einsum("sc,sc->s", x, logits[0][anchor].to(x.dtype)) + logits[1][anchor]
        delta = torch.einsum("sc,skc->sk", x, deltas[0][anchor].to(x.dtype)) + deltas[1][anchor]
        dtype = torch.promote_types(x.dtype, torch.float32)
        return logit.to(dtype), delta.to(dtype)

    @staticmethod
    def _bias(conv: Conv) -> Tensor:
        assert conv.bias is not None
        return conv.bias


def _neighbourhoods(feature: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Gather the inputs of a 3x3 convolution at S places of maps (B, C, H, W): (S, 3 * 3 * C), zero outside the map."""
    channels, height, width = feature.shape[1:]
    step = torch.arange(-1, 2, device=place.device)
    y = (place.div(width, rounding_mode="floor")[:, None] + step)[:, :, None]  # (S, 3, 1)
    x = (place % width)[:, None, None] + step  # (S, 1, 3)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = (image[:, None, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    rows = feature.permute(0, 2, 3, 1).flatten(0, 2)[index.flatten()]
    return (rows * inside.flatten()[:, None]).view(len(place), 9 * channels)


def _within_padded(anchors: Tensor, size: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    """Mask of the anchors centred on an image of `size`, padded to the stride of a pyramid's last but one level: (A,)
    bool.
    """
    multiple = strides[max(0, len(strides) - 2)]
    height, width = (-(-side // multiple) * multiple for side in size)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    return (x < width - 0.5) & (y < height - 0.5)  # centres are whole numbers but for rounding


class RPN(nn.Module):
    def __init__(self, channels: int, strides: tuple[int, ...], config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        self.head = RPNHead(
            channels, len(config.anchor_sizes[0]) * len(config.aspect_ratios), config.num_convs
        )

    def anchors(self, features: list[Tensor]) -> list[Tensor]:
        """Anchors of each level, in the network's pixels: L x (H * W * A, 4).

        torchvision's have whole corners, and lie as far apart as a level's places fit into the picture: those of P6 a
        little closer than 64 pixels where its side is no multiple of that.
        """
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        height, width = (side * self.strides[0] for side in features[0].shape[2:])
        anchors = []
        for feature, stride, sizes in zip(features, self.strides, self.config.anchor_sizes, strict=True):
            cell = cell_anchors(sizes, self.config.aspect_ratios).to(feature.device, dtype)
            size = (feature.shape[2], feature.shape[3])
            if self.config.anchors == "torchvision":
                anchors.append(grid_anchors(cell.round(), size, (height // size[0], width // size[1])))
            else:
                anchors.append(grid_anchors(cell, size, stride))
        return anchors

    def forward(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[Proposals]:
        """Propose boxes for each image at test time."""
        logits, deltas = self.head(features)
        c = self.config
        return self.propose(
            self.anchors(features), logits, deltas, image_sizes, c.pre_nms_topk_test, c.post_nms_topk_test
        )

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[GroundTruth]
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
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
        image_sizes: list[tuple[int, int]],
        pre_nms_topk: int,
        post_nms_topk: int,
    ) -> list[Proposals]:
        """Decode the best anchors of each level, suppress overlaps within a level, keep the best of all."""
        boxes, scores, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, index = logit.topk(min(pre_nms_topk, logit.shape[1]), dim=1)
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(delta, anchor[index], BOX_WEIGHTS, self.config.limit_shrinking))
            scores.append(score)
            levels.append(torch.full_like(index, level))
        proposals = []
        for box, score, level, size in zip(
            torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1), image_sizes
        ):
            box = clip_boxes(box, size)
            keep = nonempty(box, self.config.min_box_side) & torch.isfinite(score)
            box, score, level = box[keep], score[keep], level[keep]
            keep = batched_nms(box, score, level, self.config.nms_threshold)[:post_nms_topk]
            proposals.append(Proposals(box[keep], score[keep]))
        return proposals

    def match(self, anchors: Tensor, size: tuple[int, int], target: GroundTruth) -> Matches:
        """Match one image's anchors to its objects, for the losses."""
        c = self.config
        everywhere = slice(None)
        part = _within_padded(anchors, size, self.strides) if c.ignore_padding else everywhere
        matches = match_boxes(
            anchors[part],
            target.boxes,
            c.iou_negative,
            c.iou_positive,
            keep_best=True,
            min_best=c.iou_best,
            best_reassigns=c.best_reassigns,
        )
        if part is everywhere:
            return matches
        labels = torch.full_like(anchors[:, 0], -1, dtype=torch.int64)
        gt_index = torch.zeros_like(labels)
        gt_index[part], labels[part] = matches
        return Matches(gt_index, labels)

    def _losses(
        self,
        anchors: Tensor,
        features: list[Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[GroundTruth],
    ) -> dict[str, Tensor]:
        c = self.config
        images, indices, labels, wanted, num_sampled = [], [], [], [], 0
        for image, (size, target) in enumerate(zip(image_sizes, targets, strict=True)):
            matches = self.match(anchors, size, target)
            positive, negative = subsample(matches.labels, c.num_samples, c.positive_fraction, target.seed)
            sampled = torch.cat([positive, negative])
            num_sampled += max(len(positive), 1) + max(len(negative), 1)  # as MMDetection counts
            images.append(torch.full_like(sampled, image))
            indices.append(sampled)
            labels.append(matches.labels[sampled])
            gt_boxes = target.boxes[matches.gt_index[positive]] if len(positive) else anchors[positive]
            wanted.append(encode_boxes(anchors[positive], gt_boxes, BOX_WEIGHTS))
        logits, deltas = self.head.at(features, torch.cat(images), torch.cat(indices))
        label = torch.cat(labels)
        loss_cls = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="sum")
        loss_loc = F.smooth_l1_loss(
            deltas[label == 1], torch.cat(wanted), reduction="sum", beta=c.smooth_l1_beta
        )
        normalizer: float | Tensor = c.num_samples * len(targets)
        if c.normalize_by == "sampled":
            normalizer = mean_over_processes(num_sampled, logits.device)
        return {
            "loss_rpn_cls": loss_cls * (c.loss_weight / normalizer),
            "loss_rpn_loc": loss_loc * (c.loss_weight / normalizer),
        }
