"""Test-time augmentation of one picture, with detectron2's semantics.

Boxes are detected in every view of the picture (resized, mirrored), brought back to the picture and merged by
class-wise NMS. Each view then gives a mask of every merged box; the mask is the mean of their probabilities.

Shape letters: N detections, M mask cells a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskrcnn.config import TTAConfig
from maskrcnn.errors import UserError
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.models.places import RoIs, of_image
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.ops.boxes import clip_boxes, nonempty, scale_boxes
from maskrcnn.structures import ImageBatch, Instances

# Features kept from the boxes' pass for the masks'; beyond, the backbone runs twice, as the original always does.
KEPT_BYTES = 1 << 30


class View(NamedTuple):
    """A view of a picture of `original` (H, W) for the network: resized to `size` and mirrored or not."""

    original: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool

    def to(self, boxes: Tensor) -> Tensor:
        """Transform boxes (N, 4) of the picture into the view."""
        return self._mirror(scale_boxes(boxes, self.original, self.size))

    def back(self, boxes: Tensor) -> Tensor:
        """Transform boxes (N, 4) of the view back into the picture."""
        return scale_boxes(self._mirror(boxes), self.size, self.original)

    def _mirror(self, boxes: Tensor) -> Tensor:
        if not self.mirrored:
            return boxes
        x0, y0, x1, y1 = boxes.unbind(1)
        return torch.stack([self.size[1] - x1, y0, self.size[1] - x0, y1], dim=1)


@torch.inference_mode()
def detect_in_views(
    model: MaskRCNN, image: np.ndarray, tta: TTAConfig, score_threshold: float | None = None
) -> Instances:
    """Detect the objects of a picture (H, W, 3) uint8 RGB in all views, merged.

    Raises:
        UserError: the model finds key points, which are not merged.
    """
    check(model)
    original = (image.shape[0], image.shape[1])
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    kept: list[RoIFeatures | None] = []
    kept_bytes = 0
    for view, batch in _views(model, image, tta):
        features, detections = model.detect_boxes(batch.pixels, batch.sizes, score_threshold)
        detections = of_image(detections, 0)
        found.append((view.back(detections.boxes), detections.scores, detections.labels))
        kept_bytes += sum(m.nbytes for m in features.maps)
        kept.append(features if kept_bytes <= KEPT_BYTES and model.mask_head is not None else None)

    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    boxes = clip_boxes(boxes, original)
    (best,) = model.box_head.suppress(boxes[None], scores[None], labels[None])
    best = best[best >= 0]
    best = best[nonempty(boxes[best])]
    merged = Instances(
        original, boxes[best], scores[best], labels[best], class_names=model.config.class_names
    )
    if model.mask_head is not None and model.config.mask_head is not None:
        probs = _mask_probs(model, image, tta, kept, merged)
        merged.masks = model.masks(probs, merged.boxes, original)
    return merged


def check(model: MaskRCNN) -> None:
    """Refuse a model that test-time augmentation cannot be done with."""
    if model.keypoint_head is not None:
        raise UserError(
            f"{model.config.name}: expected a model without key points for test-time augmentation: the points of "
            "several views cannot be merged. Predict without it."
        )


def _mask_probs(
    model: MaskRCNN, image: np.ndarray, tta: TTAConfig, kept: list[RoIFeatures | None], merged: Instances
) -> Tensor:
    """Mean over the views of the merged detections' mask probabilities: (N, M, M)."""
    assert model.mask_head is not None
    total = None
    for i, (view, batch) in enumerate(_views(model, image, tta)):
        features, kept[i] = kept[i], None
        if features is None:
            features = model.roi_features(model.backbone(batch.pixels))
        rois = RoIs.of([view.to(merged.boxes)])
        probs = model.mask_head(features, rois, merged.labels).sigmoid()
        probs = probs.flip(2) if view.mirrored else probs
        total = probs if total is None else total + probs
    assert total is not None
    return total / len(kept)


def _views(model: MaskRCNN, image: np.ndarray, tta: TTAConfig) -> Iterator[tuple[View, ImageBatch]]:
    original, resize = (image.shape[0], image.shape[1]), model.config.input.resize
    for min_size in tta.min_sizes:
        size = resize_size(*original, min_size, tta.max_size, resize)
        pixels = torch.from_numpy(np.ascontiguousarray(resize_image(image, size, resize))).permute(2, 0, 1)
        for mirrored in (False, True) if tta.horizontal_flip else (False,):
            shown = pixels.flip(2) if mirrored else pixels
            yield View(original, size, mirrored), model.preprocess([shown], [original])
