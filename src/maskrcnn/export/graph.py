"""A model as one graph of fixed-size tensors, for export: pictures in, detections with masks and key points out.

Shape letters: B images, D detections, M mask cells a side, P key points.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from maskrcnn.models.box_head import Detections
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import NOTHING, best, take
from maskrcnn.ops.boxes import nonempty


class Graph(nn.Module):
    """Mask R-CNN over padded batches.

    forward: images (B, 3, H, W) float32, RGB 0..255, at the network's size and padded with zeros, H and W multiples of
    the model's `size_divisor`; image_sizes (B, 2) int64, the (h, w) of each without padding ->
    boxes (B, D, 4) in the network's pixels, scores (B, D), labels (B, D) int64, masks (B, D, M, M) probabilities and
    keypoints (B, D, P, 3) where the model has them, counts (B,) int64: places from `counts` on are zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = copy.copy(model)  # the same parts, of another form
        self.model.fixed_size = True
        c = model.config.input
        self.register_buffer("mean", torch.tensor(c.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(c.pixel_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        features, found = self.model.detect_boxes(self.normalise(images, image_sizes), image_sizes)
        found = _with_extent(found)
        masks, keypoints = self.model.details(features, found)
        out = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        if masks is not None:
            out["masks"] = torch.where(found.valid[..., None, None], masks, 0.0)
        if keypoints is not None:
            out["keypoints"] = torch.where(found.valid[..., None, None], keypoints, 0.0)
        return {**out, "counts": found.valid.sum(1)}

    def normalise(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation inside the pictures; the padding stays zero."""
        y = torch.arange(images.shape[2], device=images.device)[None, :, None]
        x = torch.arange(images.shape[3], device=images.device)[None, None, :]
        inside = (y < image_sizes[:, :1, None]) & (x < image_sizes[:, 1:, None])
        pixels = images if self.model.config.input.channel_order == "RGB" else images.flip(1)
        pixels = torch.where(inside[:, None], (pixels - self.mean) / self.std, 0.0)
        return pixels.to(self.model.dtype)


def _with_extent(found: Detections) -> Detections:
    """Leave out boxes without extent, which are no detections; the others move up."""
    real = found.valid & nonempty(found.boxes)
    score, index = best(torch.where(real, found.scores, NOTHING), found.scores.shape[1])
    valid = score > NOTHING
    boxes = torch.where(valid[..., None], take(found.boxes, index), 0.0)
    scores, labels = torch.where(valid, score, 0.0), torch.where(valid, take(found.labels, index), 0)
    return found._replace(boxes=boxes, scores=scores, labels=labels, valid=valid)
