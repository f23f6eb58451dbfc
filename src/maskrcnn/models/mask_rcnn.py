"""Mask R-CNN: He et al. 2017 (arXiv 1703.06870), with detectron2's semantics.

Backbone -> proposals -> boxes -> masks. Two entry points with one return type each: `forward` gives the training
losses, `detect` the detections. `models.predictor` has `predict`, which takes pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn.backbones.fpn import FPNBackbone, LastMap
from maskrcnn.config import ModelConfig
from maskrcnn.masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.models.box_head import DetectionHead, Detections
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import RPN
from maskrcnn.ops.boxes import clip_boxes, nonempty, scale_boxes
from maskrcnn.structures import GroundTruth, ImageBatch, Instances


class MaskRCNN(nn.Module):
    """Mask R-CNN: backbone, RPN, box head and optional mask and key-point heads. Build one with `maskrcnn.build` or
    `maskrcnn.load`.
    """

    def __init__(
        self,
        backbone: FPNBackbone | LastMap,
        rpn: RPN,
        box_head: DetectionHead,
        mask_head: MaskHead | None,
        keypoint_head: KeypointHead | None,
        res5: nn.Module | None,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        self.res5 = res5  # of C4: the stage that all heads share
        self.config = config
        self.engine = "eager"  # whoever prepares the model writes here what with

    @property
    def device(self) -> torch.device:
        return self.rpn.head.objectness.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.rpn.head.objectness.weight.dtype

    def forward(self, batch: ImageBatch, targets: list[GroundTruth]) -> dict[str, Tensor]:
        """Compute the weighted losses, scalars: loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, loss_mask,
        loss_keypoint.

        A cascade has loss_cls_stage0, loss_box_reg_stage0 and so on in place of the box head's two.
        They are normalised over all processes, so that their gradients' mean is that of the whole batch.
        """
        features = self.backbone(batch.pixels)
        proposals, losses = self.rpn.loss(features, batch.image_sizes, targets)
        features = self.roi_features(features)
        rois = self.box_head.sample(proposals, targets)
        losses |= self.box_head.loss(features, rois, targets, batch.image_sizes)
        foreground = [r.foreground(self.box_head.num_classes) for r in rois]
        if self.mask_head is not None:
            losses |= self.mask_head.loss(features, foreground, targets)
        if self.keypoint_head is not None:
            losses |= self.keypoint_head.loss(features, foreground, targets)
        return losses

    @torch.inference_mode()
    def detect(self, batch: ImageBatch, score_threshold: float | None = None) -> list[Instances]:
        """Detections of each image, in its original pixels, with a score above `score_threshold`, by default the
        model's own.
        """
        return self.describe(*self.detect_boxes(batch, score_threshold), batch)

    def detect_boxes(
        self, batch: ImageBatch, score_threshold: float | None = None
    ) -> tuple[RoIFeatures, list[Detections]]:
        """Detections of each image without masks and key points, in the network's pixels, and the features to compute
        these from.
        """
        maps = self.backbone(batch.pixels)
        proposals = self.rpn(maps, batch.image_sizes)
        features = self.roi_features(maps)
        detections = self.box_head(
            features, proposals, batch.image_sizes, score_threshold, batch.original_sizes
        )
        return features, detections

    def describe(
        self, features: RoIFeatures, detections: list[Detections], batch: ImageBatch
    ) -> list[Instances]:
        """Add masks and key points to the detections, and scale all to the original pixels."""
        boxes = [d.boxes for d in detections]
        counts = [len(b) for b in boxes]
        none: list[Tensor | None] = [None] * len(boxes)
        masks = keypoints = none
        if self.mask_head is not None:
            logits = self.mask_head(features, boxes, torch.cat([d.labels for d in detections]))
            masks = list(logits.sigmoid().split(counts))
        if self.keypoint_head is not None:
            keypoints = list(self.keypoint_head.predict(features, boxes).split(counts))
        return [
            self._finish(*of_one)
            for of_one in zip(
                detections, masks, keypoints, batch.image_sizes, batch.original_sizes, strict=True
            )
        ]

    def roi_features(self, features: list[Tensor]) -> RoIFeatures:
        """Select the maps that the heads pool from: all of a pyramid's but its last, or the only one."""
        levels = self.backbone.num_roi_levels
        strides, rules = self.backbone.strides[:levels], self.config.rules
        how = (rules.level_epsilon, rules.roi_aligned, rules.roi_sampling_ratio)
        return RoIFeatures(features[:levels], strides, self.res5, *how)

    def _finish(
        self,
        detections: Detections,
        mask_probs: Tensor | None,
        keypoints: Tensor | None,
        size: tuple[int, int],
        original: tuple[int, int],
    ) -> Instances:
        boxes = clip_boxes(scale_boxes(detections.boxes, size, original), original)
        keep = nonempty(boxes)
        boxes = boxes[keep]
        masks = None
        if mask_probs is not None and self.config.mask_head is not None:
            masks = self.masks(mask_probs[keep], boxes, original)
        head = self.config.keypoint_head
        if keypoints is not None:
            x, y = original[1] / size[1], original[0] / size[0]
            keypoints = keypoints[keep] * keypoints.new_tensor([x, y, 1])
        return Instances(
            original,
            boxes,
            detections.scores[keep],
            detections.labels[keep],
            masks,
            keypoints,
            class_names=self.config.class_names,
            skeleton=() if head is None else head.skeleton,
        )

    def masks(self, probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> PredictedMasks:
        """Masks of a picture of `size` from predicted probabilities (N, M, M) over predicted boxes (N, 4)."""
        head = self.config.mask_head
        assert head is not None
        if self.config.rules.paste == "torchvision":
            boxes = whole_pixel_boxes(boxes, probs.shape[-1])
        return PredictedMasks(probs, boxes, size, head.threshold)

    def preprocess(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]] | None = None
    ) -> ImageBatch:
        """Normalise and pad uint8 RGB images (3, h, w), already at the network's size, on the model's device.

        `original_sizes` are the sizes to report detections in; by default the images' own.
        """
        c = self.config.input
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        height, width = (
            -(-max(side) // c.size_divisor) * c.size_divisor for side in zip(*sizes, strict=True)
        )
        dtype = torch.promote_types(self.dtype, torch.float32)
        # Rounded to float32 in float64 models too, as the originals' buffers are.
        mean = torch.tensor(c.pixel_mean, device=self.device)[:, None, None].to(dtype)
        std = torch.tensor(c.pixel_std, device=self.device)[:, None, None].to(dtype)
        shape = (len(images), 3, height, width)
        pixels = torch.zeros(shape, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)
        for image, (h, w), out in zip(images, sizes, pixels, strict=True):
            image = image.to(self.device, non_blocking=True)
            if c.channel_order == "BGR":
                image = image.flip(0)
            out[:, :h, :w] = (image.to(dtype) - mean) / std
        return ImageBatch(pixels.to(self.dtype), sizes, list(original_sizes or sizes))
