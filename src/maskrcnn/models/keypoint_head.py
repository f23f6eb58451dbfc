"""Key-point branch: He et al. 2017 (arXiv 1703.06870), section 5, with detectron2's details.

Each key point is one cell of a heat map over its RoI, learnt by a softmax over all cells.
Shape letters: B images, S places of an image, R RoIs over the batch, P key points, M heat-map cells a side.
Points are (x, y, visibility) in learning and (x, y, score) in decoding, continuous, in the network's pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.backbones.layers import conv_tower
from maskrcnn.config import KeypointHeadConfig
from maskrcnn.models.box_head import SampledRoIs
from maskrcnn.models.places import RoIs
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.heatmaps import decode_heatmaps, has_point_inside, heatmap_cells
from maskrcnn.ops.processes import mean_over_processes
from maskrcnn.structures import GroundTruth


class KeypointHead(nn.Module):
    """Key-point head: RoIAlign, 3x3 convolutions, a 4x4 transposed convolution of stride 2, bilinear enlargement by
    2.
    """

    def __init__(self, channels: int, config: KeypointHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = conv_tower(channels, config.conv_channels, config.num_convs)
        channels = config.conv_channels if config.num_convs else channels
        self.deconv = nn.ConvTranspose2d(channels, config.num_keypoints, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        assert self.deconv.bias is not None
        nn.init.zeros_(self.deconv.bias)

    def forward(self, features: RoIFeatures, rois: RoIs) -> Tensor:
        """Predict heatmap_logits (R, P, M, M), float32."""
        return self.predict_pooled(features.pool(rois, self.config.pool_size))

    def predict_pooled(self, x: Tensor) -> Tensor:
        """Predict heatmap_logits of RoIs pooled from the maps, (R, C, pool_size, pool_size)."""
        x = self.deconv(self.convs(x))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def predict(self, features: RoIFeatures, rois: RoIs) -> Tensor:
        """Predict the key points of RoIs: x, y and score, (R, P, 3)."""
        return decode_heatmaps(self(features, rois), rois.at(rois.boxes))

    def loss(
        self, features: RoIFeatures, foreground: SampledRoIs, targets: list[GroundTruth]
    ) -> dict[str, Tensor]:
        """Cross-entropy over the cells of each visible point's heat map, their mean over all these points.

        A RoI takes part that has a visible point inside; a point of it counts that is visible and inside too.
        """
        points = torch.stack([_points_of(t, i) for t, i in zip(targets, foreground.gt_index, strict=True)])
        valid = foreground.valid & has_point_inside(foreground.boxes, points)
        rois = features.rois(foreground.boxes, valid, foreground.first)
        logits = self(features, rois)
        cell, counts = heatmap_cells(rois.at(points), rois.at(foreground.boxes), logits.shape[-1])
        counts = counts & rois.at(valid)[:, None]
        # A batch has a few hundred points that count of some ten thousand.
        rows = features.rois(cell, counts).rows
        cell = torch.where(counts, cell, -1).flatten()[rows]
        maps = logits.flatten(0, 1).flatten(1)[rows]
        loss = F.cross_entropy(maps, cell, reduction="sum", ignore_index=-1)
        normalizer = mean_over_processes(counts.sum(), logits.device).clamp(min=1)
        # The maps without a point take part with zero, so that every parameter has a gradient on every process.
        return {"loss_keypoint": (loss + logits.sum() * 0) * (self.config.loss_weight / normalizer)}


def _points_of(target: GroundTruth, index: Tensor) -> Tensor:
    """Key points (S, P, 3) of the objects `index` (S,); of none where there are no objects."""
    assert target.keypoints is not None
    if not len(target):
        return target.keypoints.new_zeros(len(index), *target.keypoints.shape[1:])
    return target.keypoints[index]
