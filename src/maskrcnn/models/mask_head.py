"""Mask branch: He et al. 2017 (arXiv 1703.06870), section 3 and figure 4, right.

Shape letters: R RoIs over the batch, K classes, S pooled cells a side, M = 2 S mask cells a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import MaskHeadConfig, RulesConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth


class MaskHead(nn.Module):
    """Mask head: RoIAlign, 3x3 convolutions, a 2x2 transposed convolution of stride 2, one mask a class."""

    def __init__(
        self, channels: int, num_classes: int, config: MaskHeadConfig, rules: RulesConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.rules, self.num_classes = config, rules or RulesConfig(), num_classes
        self.convs = conv_tower(channels, config.conv_channels, config.num_convs, config.norm)
        channels = config.conv_channels if config.num_convs else channels
        self.deconv = nn.ConvTranspose2d(channels, config.conv_channels, 2, stride=2)
        self.predictor = nn.Conv2d(config.conv_channels, 1 if config.class_agnostic else num_classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for module in (self.deconv, self.predictor):
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, features: RoIFeatures, boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Predict mask_logits (R, M, M), float32, of each RoI's own class. boxes: per image; labels: (R,) over the
        batch.
        """
        return self.predict_pooled(features.pool(boxes, self.config.pool_size), labels)

    def predict_pooled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Predict mask_logits of RoIs pooled from the maps, (R, C, pool_size, pool_size)."""
        x = F.relu_(self.deconv(self.convs(x)))
        logits = own_class(
            x, self.predictor, torch.zeros_like(labels) if self.config.class_agnostic else labels
        )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(
        self, features: RoIFeatures, foreground: list[SampledRoIs], targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Mean binary cross-entropy over the cells of every object RoI, on its own class's mask."""
        labels = torch.cat([s.labels for s in foreground])
        logits = self(features, [s.boxes for s in foreground], labels)
        wanted = self.mask_targets(foreground, targets).to(logits.device, logits.dtype, non_blocking=True)
        cells = (2 * self.config.pool_size) ** 2
        normalizer = mean_over_processes(len(labels), logits.device).clamp(min=1) * cells
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"loss_mask": loss * (self.config.loss_weight / normalizer)}

    @torch.no_grad()
    def mask_targets(self, foreground: list[SampledRoIs], targets: list[GroundTruth]) -> Tensor:
        """Rasterise each RoI's object within the RoI: (R, M, M) bool."""
        size = 2 * self.config.pool_size
        rasters = []
        for rois, target in zip(foreground, targets, strict=True):
            assert target.masks is not None
            masks, index = target.masks, rois.gt_index.cpu()
            if self.rules.mask_targets == "bitmaps":
                used, index = index.unique(return_inverse=True)
                masks = masks.select(used).filled()
            rasters.append(masks.rasterize(rois.boxes.float().cpu(), index, size))
        return torch.cat(rasters)


def own_class(x: Tensor, predictor: nn.Conv2d, labels: Tensor) -> Tensor:
    """Apply to each RoI (R, C, M, M) the row of a 1x1 convolution that predicts its own class: (R, M, M).

    The other classes' masks are neither used nor learnt from: 80 times the work for nothing.
    """
    weight = predictor.weight[:, :, 0, 0][labels].to(x.dtype)  # (R, C)
    assert predictor.bias is not None
    logits = torch.bmm(weight[:, None], x.flatten(2)).unflatten(2, x.shape[2:])[:, 0]
    return logits + predictor.bias[labels][:, None, None]
