"""Mask R-CNN: He et al. 2017 (arXiv 1703.06870), with detectron2's semantics.

Backbone -> proposals -> boxes -> masks. Two entry points with one return type each: `forward` gives the training
losses, `detect` the detections; `predict` is `detect` for pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.backbones.fpn import FPNBackbone, LastMap
from maskrcnn.backbones.layers import fold_norms
from maskrcnn.config import ModelConfig, TTAConfig
from maskrcnn.errors import UserError, check_number, described
from maskrcnn.images.pictures import Picture, is_picture, pixels_of
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.masks import PredictedMasks, whole_pixel_boxes
from maskrcnn.models.box_head import BoxHead, Detections
from maskrcnn.models.cascade import CascadeHead
from maskrcnn.models.keypoint_head import KeypointHead
from maskrcnn.models.mask_head import MaskHead
from maskrcnn.models.pooling import RoIFeatures
from maskrcnn.models.rpn import RPN
from maskrcnn.ops.boxes import clip_boxes, nonempty, scale_boxes
from maskrcnn.processor import DTYPES, let_forks_compute
from maskrcnn.structures import GroundTruth, ImageBatch, Instances


class MaskRCNN(nn.Module):
    """Mask R-CNN: backbone, RPN, box head and optional mask and key-point heads. Build one with `maskrcnn.build` or
    `maskrcnn.load`.
    """

    def __init__(
        self,
        backbone: FPNBackbone | LastMap,
        rpn: RPN,
        box_head: BoxHead | CascadeHead,
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
        strides, fpn = self.backbone.strides[:levels], self.config.fpn
        if fpn is None:
            return RoIFeatures(features[:levels], strides, self.res5)
        how = (fpn.level_epsilon, fpn.roi_aligned, fpn.roi_sampling_ratio)
        return RoIFeatures(features[:levels], strides, None, *how)

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
        if head.paste == "torchvision":
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

    @overload
    def predict(
        self,
        images: Picture,
        *,
        min_size: int | None = ...,
        max_size: int | None = ...,
        score_threshold: float | None = ...,
        tta: TTAConfig | None = ...,
    ) -> Instances: ...
    @overload
    def predict(
        self,
        images: Sequence[Picture],
        *,
        min_size: int | None = ...,
        max_size: int | None = ...,
        score_threshold: float | None = ...,
        tta: TTAConfig | None = ...,
    ) -> list[Instances]: ...
    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        score_threshold: float | None = None,
        tta: TTAConfig | None = None,
    ) -> Instances | list[Instances]:
        """Detect the objects of a picture, or of each of several.

        images: a path, a file opened for reading bytes, an (H, W, 3) uint8 RGB array or a Pillow image, whose pixels
        are taken as they are, without its EXIF orientation; a list of these gives a list.
        min_size, max_size: shortest and longest side that the network sees, by default the model's own.
        score_threshold: only detections of a score above it; by default the model's own threshold, 0.05.
        tta: look at each picture in these sizes and mirrored, instead of once, and merge what is found.

        What else a model goes by is in its config, to be changed before: `config.box_head` (nms_threshold,
        class_agnostic_nms, detections_per_image) and `config.mask_head` (threshold).

        A process that is forked after this, as `multiprocessing.Pool` does on Linux, computes with one thread:
        OpenMP's do not survive a fork. It must not ask Torch for more.

        Raises:
            UserError: a file that cannot be read, an array of another shape or type, anything else for a picture, a
                size below 1, a threshold outside 0 to 1, sizes given in both ways.
        """
        if min_size is not None:
            min_size = check_number(min_size, "predict: min_size", 1, whole=True)
        if max_size is not None:
            max_size = check_number(max_size, "predict: max_size", 1, whole=True)
        if score_threshold is not None:
            score_threshold = check_number(score_threshold, "predict: score_threshold", 0, 1)
        if tta is not None:
            _check_views(tta)
            if min_size is not None or max_size is not None:
                raise UserError("predict: expected sizes in tta or as min_size and max_size, got both.")
        how = (min_size, max_size, score_threshold, tta)
        given: Any = images
        if not _are_several(given):
            return self._predict_one(given, "predict", *how)
        return [self._predict_one(image, f"predict: images[{i}]", *how) for i, image in enumerate(given)]

    def _predict_one(
        self,
        picture: Picture,
        where: str,
        min_size: int | None,
        max_size: int | None,
        score_threshold: float | None,
        tta: TTAConfig | None,
    ) -> Instances:
        image = pixels_of(picture, where)
        let_forks_compute()
        was_training = self.training
        self.eval()
        try:
            if tta is None:
                original = (image.shape[0], image.shape[1])
                c = self.config.input
                size = resize_size(*original, min_size or c.min_size, max_size or c.max_size, c.resize)
                resized = resize_image(image, size, c.resize)
                resized = torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)
                instances = self.detect(self.preprocess([resized], [original]), score_threshold)[0]
            else:
                from maskrcnn.models.tta import detect_in_views

                instances = detect_in_views(self, image, tta, score_threshold)
        finally:
            self.train(was_training)
        instances.image = picture if isinstance(picture, str | Path) else image
        return instances

    def prepare(self, precision: str = "fp32") -> MaskRCNN:
        """Make the model ready for fast inference, for good: batch norms folded, channels-last, cast.

        precision: fp32, bf16 or fp16. Boxes, scores and mask probabilities are computed in float32 in any of them.
        """
        self.eval().requires_grad_(False)
        fold_norms(self)
        for module in self.modules():
            if isinstance(module, BoxHead):
                module.prepare()
        self.to(dtype=DTYPES[precision])
        return self.to(memory_format=torch.channels_last)


def _are_several(images: object) -> bool:
    """Return True for an iterable of pictures, False for a single picture and for containers that hold none."""
    none = Tensor | Mapping | AbstractSet | bytes | bytearray | memoryview
    return isinstance(images, Iterable) and not is_picture(images) and not isinstance(images, none)


def _check_views(tta: TTAConfig) -> None:
    if not isinstance(tta, TTAConfig):
        raise UserError(f"predict: tta: expected a TTAConfig, got {described(tta)}.")
    if not tta.min_sizes:
        raise UserError("predict: tta.min_sizes: expected one size or more, got none.")
    for size in (*tta.min_sizes, tta.max_size):
        check_number(size, "predict: a size of tta", 1, whole=True)
