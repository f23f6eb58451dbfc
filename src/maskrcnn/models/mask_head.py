"""Mask branch: He et al. 2017 (arXiv 1703.06870), section 3 and figure 4, right.

Shape letters: R RoIs over the batch, K classes, S pooled cells a side, M = 2 S mask cells a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import MaskHeadConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth

# RoIs whose upsampled features exist at a time: those of 300 would take 0.25 GB.
CHUNK = 32


class MaskHead(nn.Module):
    """Mask head: RoIAlign, 3x3 convolutions, a 2x2 transposed convolution of stride 2, one mask a class."""

    def __init__(self, channels: int, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
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
        if self.config.class_agnostic:
            labels = torch.zeros_like(labels)
        logits, done = [], 0
        for pooled in features.chunks(boxes, self.config.pool_size):
            for x in self.convs(pooled).split(CHUNK):
                logits.append(self._predict(x, labels[done : done + len(x)]))
                done += len(x)
        logits = torch.cat(logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _predict(self, x: Tensor, labels: Tensor) -> Tensor:
        """Deconvolution, ReLU and the predictor's row of each RoI's class: (R, C, S, S) -> (R, M, M).

        The strides of a 2x2 deconvolution do not overlap, so it is a 1x1 convolution to four times the
        channels; the predictor is applied before the four are interleaved, to one class instead of all.
        """
        size = x.shape[-1]
        channels = self.deconv.out_channels
        weight = self.deconv.weight.permute(2, 3, 1, 0).flatten(0, 2)[
            :, :, None, None
        ]  # (2 * 2 * C, C_in, 1, 1)
        bias = self.deconv.bias
        assert bias is not None
        x = F.relu_(F.conv2d(x, weight, bias.repeat(4)))
        x = x.permute(0, 2, 3, 1).reshape(len(x), size * size * 4, channels)
        class_weight = self.predictor.weight[:, :, 0, 0][labels]  # (R, C)
        assert self.predictor.bias is not None
        logits = torch.bmm(x, class_weight[:, :, None].to(x.dtype))[..., 0]
        logits = logits + self.predictor.bias[labels][:, None]
        logits = logits.view(-1, size, size, 2, 2).permute(0, 1, 3, 2, 4)  # y, dy, x, dx
        return logits.reshape(-1, 2 * size, 2 * size)

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
            if self.config.targets == "bitmaps":
                used, index = index.unique(return_inverse=True)
                masks = masks.select(used).filled()
            rasters.append(masks.rasterize(rois.boxes.float().cpu(), index, size))
        return torch.cat(rasters)
