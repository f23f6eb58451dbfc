"""Masks as renderings: PointRend, Kirillov et al. 2020 (arXiv 1912.08193), with detectron2's semantics.

A coarse head predicts 7x7 cells from the whole RoI. A point head says what a mask is at any point, from the finest map
there and the coarse logits. A mask is then a picture that is rendered: a grid of points, enlarged by two a few times,
each time with the points computed anew that are the least certain. In training the point head learns at random points,
most of them where the coarse head is uncertain.

A place of a RoI is given by its share of the box's width and height: (0, 0) is its upper left corner. All maps and
masks are read bilinearly, with zeros outside.

Shape letters: B images, N places of an image, R RoIs over the batch, C channels, K classes, P points of a RoI, S cells
of the coarse mask a side, M cells of the rendered one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.config import MaskHeadConfig, RulesConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.mask_head import own_class, rasterized
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.matching import hashed
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth

RANDOM_BITS = 24  # of a random share: a float32 holds them exactly


class PointRend(nn.Module):
    """Mask head of a coarse head and a point head, with the interface of a `MaskHead`."""

    def __init__(
        self, channels: int, num_classes: int, config: MaskHeadConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        assert config.point_rend is not None
        self.config, self.rules, self.points = config, rules or RulesConfig(), config.point_rend
        num_masks = 1 if config.class_agnostic else num_classes
        self.coarse_head = CoarseHead(channels, num_masks, config)
        self.point_head = PointHead(channels, num_masks, config)

    def forward(self, features: RoIFeatures, rois: RoIs, labels: Tensor) -> Tensor:
        """Render mask_logits (R, M, M), float32, of each RoI's own class, labels (R,)."""
        labels = labels * (not self.config.class_agnostic)
        coarse = self.coarse(features, rois)
        side = self.points.start_size
        points = grid(side, rois.boxes).expand(labels.shape[0], -1, -1)
        logits = self.at(points, features, rois, coarse, labels).unflatten(1, (side, side))
        for _ in range(self.points.num_subdivisions):
            enlarged = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False)
            logits, side = enlarged[:, 0], 2 * side
            number = min(self.points.num_points, side**2)
            cells = logits.flatten(1).abs().topk(number, largest=False, sorted=False).indices
            points = (torch.stack([cells % side, cells // side], dim=2) + 0.5) / side
            finer = self.at(points.to(rois.boxes.dtype), features, rois, coarse, labels)
            logits = logits.flatten(1).scatter(1, cells, finer).unflatten(1, (side, side))
        return logits

    def coarse(self, features: RoIFeatures, rois: RoIs) -> Tensor:
        """Predict the coarse mask_logits of all classes, (R, K, S, S), float32."""
        size = 2 * self.points.coarse_size
        points = grid(size, rois.boxes).expand(rois.rows.shape[0], -1, -1)
        pooled = features_at(points, features, rois).unflatten(2, (size, size))
        return _float32(self.coarse_head(pooled))

    def at(self, points: Tensor, features: RoIFeatures, rois: RoIs, coarse: Tensor, labels: Tensor) -> Tensor:
        """Predict the RoIs' mask_logits at points (R, P, 2), of each RoI's own class: (R, P), float32."""
        fine = features_at(points, features, rois)
        return _float32(self.point_head(fine, sampled(coarse, points).to(fine.dtype), labels))

    def loss(
        self, features: RoIFeatures, stages: list[SampledRoIs], targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Mean binary cross-entropies of every object RoI on its own class's mask: loss_mask over the coarse cells,
        loss_mask_point over the points. stages: as of `MaskHead.loss`.
        """
        boxes, found_labels, gt_index, gt_boxes = (field[:, : stages[0].first] for field in stages[0][:4])
        objects = SampledRoIs(boxes, found_labels, gt_index, gt_boxes)
        rois = features.rois(objects.boxes, objects.valid)
        labels = rois.at(objects.labels)
        valid, own = labels >= 0, labels.clamp(min=0) * (not self.config.class_agnostic)
        normalizer = mean_over_processes(valid.sum(), labels.device).clamp(min=1)

        def mean(logits: Tensor, wanted: Tensor) -> Tensor:
            weight = valid[:, None].to(logits.dtype)
            total = F.binary_cross_entropy_with_logits(logits, wanted.to(logits), weight, reduction="sum")
            return total * (self.config.loss_weight / (normalizer * logits.shape[1]))

        coarse = self.coarse(features, rois)
        own_coarse = coarse.gather(1, own[:, None, None, None].expand(-1, -1, *coarse.shape[2:]))
        cells = rasterized(objects, targets, coarse.shape[-1], self.rules)
        points = self.choose_points(own_coarse.detach(), rois, targets)
        shares = self.point_targets(rois.spread(points), objects, targets)
        return {
            "loss_mask": mean(own_coarse.flatten(1), rois.at(cells).flatten(1)),
            "loss_mask_point": mean(self.at(points, features, rois, coarse, own), rois.at(shares)),
        }

    @torch.no_grad()
    def choose_points(self, coarse: Tensor, rois: RoIs, targets: list[GroundTruth]) -> Tensor:
        """Choose each RoI's points for the loss, (R, P, 2): most of them the least certain of more random ones, by the
        coarse logits (R, 1, S, S) of its class, the others at random.
        """
        c = self.points
        num_uncertain = int(c.uncertain_share * c.num_samples)
        num_random, num_tried = c.num_samples - num_uncertain, int(c.oversampling * c.num_samples)
        tried, others = random_points((num_tried, num_random), rois, targets)
        chosen = sampled(coarse, tried)[:, 0].abs().topk(num_uncertain, largest=False).indices
        return torch.cat([tried.gather(1, chosen[..., None].expand(-1, -1, 2)), others], dim=1)

    @torch.no_grad()
    def point_targets(self, points: Tensor, objects: SampledRoIs, targets: list[GroundTruth]) -> Tensor:
        """Read each RoI's object at points (B, N, P, 2): (B, N, P) of 0 to 1, 0 where there is no object."""
        index = torch.where(objects.valid, objects.gt_index, -1)
        read = []
        for place, objects_of, target in zip(within(objects.boxes, points), index, targets, strict=True):
            assert target.masks is not None
            read.append(target.masks.at_points(place, objects_of))
        return torch.stack(read)


class CoarseHead(nn.Module):
    """Coarse masks of whole RoIs: a 2x2 convolution of stride 2 and fully connected layers."""

    def __init__(self, channels: int, num_masks: int, config: MaskHeadConfig) -> None:
        super().__init__()
        assert config.point_rend is not None
        self.size, width = config.point_rend.coarse_size, config.point_rend.fc_channels
        self.conv = nn.Conv2d(channels, config.conv_channels, 2, stride=2)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.fcs = nn.ModuleList()
        features = config.conv_channels * self.size**2
        for _ in range(config.point_rend.num_fcs):
            fc = nn.Linear(features, width)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            self.fcs.append(fc)
            features = width
        self.predictor = nn.Linear(features, num_masks * self.size**2)
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.conv, *self.fcs, self.predictor):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Predict mask_logits (R, K, S, S) of RoIs read at (R, C, 2 S, 2 S) places."""
        x = F.relu_(self.conv(x)).flatten(1)
        for fc in self.fcs:
            x = F.relu_(fc(x))
        return self.predictor(x).unflatten(1, (-1, self.size, self.size))


class PointHead(nn.Module):
    """Masks at points: fully connected layers, each of which sees the point's coarse logits again."""

    def __init__(self, channels: int, num_masks: int, config: MaskHeadConfig) -> None:
        super().__init__()
        assert config.point_rend is not None
        self.fcs = nn.ModuleList()
        for _ in range(config.point_rend.num_point_fcs):
            fc = nn.Conv1d(channels + num_masks, config.conv_channels, 1)
            nn.init.kaiming_normal_(fc.weight, mode="fan_out", nonlinearity="relu")
            self.fcs.append(fc)
            channels = config.conv_channels
        self.predictor = nn.Conv1d(channels + num_masks, num_masks, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (*self.fcs, self.predictor):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, fine: Tensor, coarse: Tensor, labels: Tensor) -> Tensor:
        """Predict mask_logits (R, P) of the class `labels` (R,) from features (R, C, P) and coarse logits (R, K, P)."""
        x = torch.cat([fine, coarse], dim=1)
        for fc in self.fcs:
            x = torch.cat([F.relu_(fc(x)), coarse], dim=1)
        return own_class(x[..., None], self.predictor, labels)[..., 0]


def grid(side: int, like: Tensor) -> Tensor:
    """Centres of side x side cells of a box, row by row: (side * side, 2) of `like`'s type."""
    centres = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def within(boxes: Tensor, points: Tensor) -> Tensor:
    """Move points (..., P, 2) from shares of boxes (..., 4) to pixels."""
    corner, end = boxes[..., None, :2], boxes[..., None, 2:]
    return corner + points * (end - corner)


def features_at(points: Tensor, features: RoIFeatures, rois: RoIs) -> Tensor:
    """Read the finest map at the RoIs' points (R, P, 2): (R, C, P)."""
    finest, stride = features.maps[0], features.strides[0]
    height, width = (side * stride for side in finest.shape[2:])
    x, y = within(rois.at(rois.boxes), points).unbind(2)
    places = rois.spread(torch.stack([x / width, y / height], dim=2))  # (B, N, P, 2)
    read = sampled(_float32(finest), places.flatten(1, 2)).unflatten(2, places.shape[1:3])  # (B, C, N, P)
    return rois.at(read.transpose(1, 2)).to(finest.dtype)


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (R, C, H, W) at points (R, P, 2), shares of their width and height: (R, C, P)."""
    where = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, where.to(maps.dtype), padding_mode="zeros", align_corners=False)[..., 0]


def random_points(counts: tuple[int, ...], rois: RoIs, targets: list[GroundTruth]) -> list[Tensor]:
    """Draw uniform points of each RoI, one tensor (R, count, 2) for each of the counts.

    They are a function of the image's seed and the RoI's place alone, as the draw of RoIs is (`ops.matching`).
    """
    N, total = rois.boxes.shape[1], sum(counts)
    number = torch.arange(N * total * 2, device=rois.boxes.device)
    hashes = torch.stack([hashed(number, target.seed) for target in targets])
    shares = (hashes & ((1 << RANDOM_BITS) - 1)).to(rois.boxes.dtype) / (1 << RANDOM_BITS)
    return list(rois.at(shares.view(-1, N, total, 2)).split(counts, dim=1))


def _float32(x: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
