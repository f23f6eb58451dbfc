"""Mask branch: He et al. 2017 (arXiv 1703.06870), section 3 and figure 4, right.

Shape letters: B images, S places of an image, R RoIs over the batch, K classes,
M mask cells a side, twice as many as pooled ones for each transposed convolution, of which there usually is one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import MaskHeadConfig, RulesConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth


class MaskHead(nn.Module):
    """Mask head: RoIAlign, 3x3 convolutions, 2x2 transposed convolutions of stride 2, one mask a class."""

    def __init__(
        self, channels: int, num_classes: int, config: MaskHeadConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.rules, self.num_classes = config, rules or RulesConfig(), num_classes
        self.convs = conv_tower(channels, config.conv_channels, config.num_convs, config.norm)
        channels = config.conv_channels if config.num_convs else channels
        width, more = config.conv_channels, config.num_deconvs - 1
        self.deconv = nn.ConvTranspose2d(channels, width, 2, stride=2)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(more))
        self.predictor = nn.Conv2d(width, 1 if config.class_agnostic else num_classes, 1)
        for deconv in (self.deconv, *self.finer):
            nn.init.kaiming_normal_(deconv.get_parameter("weight"), mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, *self.finer, self.predictor):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, features: RoIFeatures, rois: RoIs, labels: Tensor) -> Tensor:
        """Predict mask_logits (R, M, M), float32, of each RoI's own class, labels (R,)."""
        return self.predict_pooled(features.pool(rois, self.config.pool_size), labels)

    def predict_pooled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Predict mask_logits of RoIs pooled from the maps, (R, C, pool_size, pool_size)."""
        x = self.convs(x)
        for deconv in (self.deconv, *self.finer):
            x = F.relu_(deconv(x))
        logits = own_class(x, self.predictor, labels * (not self.config.class_agnostic))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(
        self, features: RoIFeatures, stages: list[SampledRoIs], targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Mean binary cross-entropy over the cells of every object RoI, on its own class's mask. stages: the objects'
        RoIs of each box head, of which the first's count.
        """
        foreground = stages[0]
        rois = features.rois(foreground.boxes, foreground.valid, foreground.first)
        labels = rois.at(foreground.labels)
        logits = self(features, rois, labels.clamp(min=0))
        wanted = rois.at(self.mask_targets(foreground, targets)).to(logits.dtype)
        cells, valid = self.config.mask_size**2, labels >= 0
        normalizer = mean_over_processes(valid.sum(), logits.device).clamp(min=1) * cells
        loss = F.binary_cross_entropy_with_logits(
            logits, wanted, valid[:, None, None].to(logits.dtype), reduction="sum"
        )
        return {"loss_mask": loss * (self.config.loss_weight / normalizer)}

    @torch.no_grad()
    def mask_targets(self, foreground: SampledRoIs, targets: list[GroundTruth]) -> Tensor:
        """Rasterise each RoI's object within the RoI: (B, S, M, M) bool, False where there is no object."""
        return rasterized(foreground, targets, self.config.mask_size, self.rules)


def rasterized(foreground: SampledRoIs, targets: list[GroundTruth], size: int, rules: RulesConfig) -> Tensor:
    """Rasterise each RoI's object within the RoI: (B, S, size, size) bool."""
    index, fill = torch.where(foreground.valid, foreground.gt_index, -1), rules.mask_targets == "bitmaps"
    rasters = []
    for boxes, objects, target in zip(foreground.boxes, index, targets, strict=True):
        assert target.masks is not None
        rasters.append(target.masks.rasterize(boxes.float(), objects, size, filled=fill))
    return torch.stack(rasters)


def own_class(x: Tensor, predictor: nn.Conv1d | nn.Conv2d, labels: Tensor) -> Tensor:
    """Apply to each RoI (R, C, M, M) the row of a convolution of one place that predicts its own class: (R, M, M).

    The other classes' masks are neither used nor learnt from: 80 times the work for nothing.
    """
    weight = predictor.weight.flatten(1)[labels].to(x.dtype)  # (R, C)
    assert predictor.bias is not None
    logits = torch.bmm(weight[:, None], x.flatten(2)).unflatten(2, x.shape[2:])[:, 0]
    return logits + predictor.bias[labels][:, None, None]
