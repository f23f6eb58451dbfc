"""Mask branch of MMDetection's cascade: a mask head for each of its stages."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from maskrcnn.config import MaskHeadConfig, RulesConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.structures import GroundTruth


class MaskHeads(nn.Module):
    """A mask head a stage of a cascade, with the interface of one: each learns from its stage's RoIs, and all see the
    final boxes, where their probabilities are averaged (MMDetection's cascade).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        config: MaskHeadConfig,
        rules: RulesConfig | None,
        weights: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.config, self.weights = config, weights
        self.stages = nn.ModuleList(MaskHead(channels, num_classes, config, rules) for _ in weights)

    def forward(self, features: RoIFeatures, rois: RoIs, labels: Tensor) -> Tensor:
        """Predict mask_logits (R, M, M), float32, of each RoI's own class."""
        return self.predict_pooled(features.pool(rois, self.config.pool_size), labels)

    def predict_pooled(self, x: Tensor, labels: Tensor) -> Tensor:
        """Predict mask_logits of pooled RoIs: those of the stages' mean probability."""
        probs = torch.stack([head.predict_pooled(x, labels).sigmoid() for head in self.heads]).mean(0)
        return torch.logit(probs, eps=torch.finfo(probs.dtype).eps)

    def loss(
        self, features: RoIFeatures, stages: list[SampledRoIs], targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Compute loss_mask_stage0, loss_mask_stage1 and so on, each of its stage's RoIs, weighed."""
        losses = {}
        for k, (head, stage, weight) in enumerate(zip(self.heads, stages, self.weights, strict=True)):
            losses[f"loss_mask_stage{k}"] = head.loss(features, [stage], targets)["loss_mask"] * weight
        return losses

    @property
    def heads(self) -> list[MaskHead]:
        """List of the stages, typed as mask heads."""
        return cast("list[MaskHead]", list(self.stages))
