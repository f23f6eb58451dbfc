"""Mask R-CNN: He et al. 2017 (arXiv 1703.06870), with detectron2's semantics.

Backbone -> proposals -> boxes -> masks. Two entry points with one return type each: `forward` gives the training
losses, `detect` the detections. `models.predictor` has `predict`, which takes pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn.backbones.fpn import FPNBackbone, LastMap
from maskrcnn.config import ModelConfig
from maskrcnn.masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.models.box_head import MAX_CANDIDATES, DetectionHead, Detections
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import RPN
from maskrcnn.ops.boxes import clip_boxes, nonempty, scale_boxes
from maskrcnn.structures import GroundTruth, ImageBatch, Instances

log = logging.getLogger("maskrcnn")


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
        self.fixed_size = False  # for compilers: no shape may depend on data
        self.padded_sizes: list[tuple[int, int]] = []  # if any: a batch is padded to the first that takes it

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
        sizes = batch.sizes
        maps = self.backbone(batch.pixels)
        proposals, losses = self.rpn.loss(maps, sizes, targets)
        features = self.roi_features(maps)
        rois = self.box_head.sample(proposals, targets)
        found, stages = self.box_head.loss(features, rois, targets, sizes)
        losses |= found
        foreground = [stage.foreground(self.box_head.num_classes) for stage in stages]
        if self.mask_head is not None:
            losses |= self.mask_head.loss(features, foreground, targets)
        if self.keypoint_head is not None:
            losses |= self.keypoint_head.loss(features, foreground[0], targets)
        return losses

    @torch.inference_mode()
    def detect(self, batch: ImageBatch, score_threshold: float | None = None) -> list[Instances]:
        """Detections of each image, in its original pixels, with a score above `score_threshold`, by default the
        model's own.
        """
        original = torch.tensor(batch.original_sizes).to(self.device, non_blocking=True)
        features, detections = self.detect_boxes(batch.pixels, batch.sizes, score_threshold, original)
        return self.describe(features, detections, batch)

    def detect_boxes(
        self,
        pixels: Tensor,
        image_sizes: Tensor,
        score_threshold: float | None = None,
        original_sizes: Tensor | None = None,
    ) -> tuple[RoIFeatures, Detections]:
        """Detections of images (B, 3, H, W) of sizes (B, 2) without masks and key points, in the network's pixels, and
        the features to compute these from.
        """
        maps = self.backbone(pixels)
        proposals = self.rpn(maps, image_sizes)
        features = self.roi_features(maps)
        return features, self.box_head(features, proposals, image_sizes, score_threshold, original_sizes)

    def details(self, features: RoIFeatures, found: Detections) -> tuple[Tensor | None, Tensor | None]:
        """Mask probabilities (B, D, M, M) and key points (B, D, P, 3) of the detections, from the heads at hand."""
        rois = features.rois(found.boxes, found.valid)
        masks = keypoints = None
        if self.mask_head is not None:
            masks = rois.spread(self.mask_head(features, rois, rois.at(found.labels)).sigmoid())
        if self.keypoint_head is not None:
            keypoints = rois.spread(self.keypoint_head.predict(features, rois))
        return masks, keypoints

    def describe(self, features: RoIFeatures, found: Detections, batch: ImageBatch) -> list[Instances]:
        """Add masks and key points to the detections, and scale all to the original pixels."""
        if (most := int(found.num_candidates.max())) > MAX_CANDIDATES and self.fixed_size:
            log.warning(
                f"{most} boxes of one picture are above the score threshold: the best {MAX_CANDIDATES} count"
            )
        masks, keypoints = self.details(features, found)
        instances = []
        for i, (size, original) in enumerate(zip(batch.image_sizes, batch.original_sizes, strict=True)):
            boxes = clip_boxes(scale_boxes(found.boxes[i], size, original), original)
            keep = (found.valid[i] & nonempty(boxes)).nonzero()[:, 0]
            boxes, points = boxes[keep], None
            if keypoints is not None:
                x, y = original[1] / size[1], original[0] / size[0]
                points = keypoints[i, keep] * keypoints.new_tensor([x, y, 1])
            head = self.config.keypoint_head
            instances.append(
                Instances(
                    original,
                    boxes,
                    found.scores[i, keep],
                    found.labels[i, keep],
                    None if masks is None else self.masks(masks[i, keep], boxes, original),
                    points,
                    class_names=self.config.class_names,
                    skeleton=() if head is None else head.skeleton,
                )
            )
        return instances

    def roi_features(self, features: list[Tensor]) -> RoIFeatures:
        """Select the maps that the heads pool from: all of a pyramid's but its last, or the only one."""
        levels = self.backbone.num_roi_levels
        strides, rules = self.backbone.strides[:levels], self.config.rules
        how = (rules.level_epsilon, rules.roi_aligned, rules.roi_sampling_ratio)
        return RoIFeatures(features[:levels], strides, self.res5, *how, self.fixed_size)

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
        """Normalise and pad uint8 RGB images (3, h, w), or bands (C, h, w) stretched to 0..255, already at the
        network's size, on the model's device.

        `original_sizes` are the sizes to report detections in; by default the images' own.
        """
        c = self.config.input
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        d = c.size_divisor
        height, width = (-(-max(side) // d) * d for side in zip(*sizes, strict=True))
        fits = ((h, w) for h, w in self.padded_sizes if h >= height and w >= width)
        height, width = next(fits, (height, width))
        dtype = torch.promote_types(self.dtype, torch.float32)
        # Rounded to float32 in float64 models too, as the originals' buffers are.
        mean, std = (
            torch.tensor(value).to(self.device, non_blocking=True)[:, None, None].to(dtype)
            for value in (c.pixel_mean, c.pixel_std)
        )
        shape = (len(images), c.num_channels, height, width)
        pixels = torch.zeros(shape, device=self.device, dtype=dtype).to(memory_format=torch.channels_last)
        for image, (h, w), out in zip(images, sizes, pixels, strict=True):
            image = image.to(self.device, non_blocking=True)
            if c.channel_order == "BGR" and not c.channels:
                image = image.flip(0)
            out[:, :h, :w] = (image.to(dtype) - mean) / std
        return ImageBatch(pixels.to(self.dtype), sizes, list(original_sizes or sizes))
