"""Exported model that takes pictures: read, resized as the original does it, padded, run, put into their own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError, check_number
from maskrcnn.images.pictures import Picture, pixels_of
from maskrcnn.images.resize import resize_image, resize_size
from maskrcnn.masks.paste import whole_pixel_boxes
from maskrcnn.runtime.found import Found
from maskrcnn.runtime.sessions import Session, open_session

Size = tuple[int, int]


class ExportedModel:
    """Model from a file that `maskrcnn export` wrote.

    config: its settings, as JSON has them; engine: "onnx" or "openvino", which runs it.

    num_threads: None for as many as the runtime takes by itself; session: what runs it instead of `open_session`'s.

    Raises:
        UserError: no such file, its runtime is not installed, a damaged file, or one that is another tool's.
    """

    def __init__(
        self, path: str | Path, num_threads: int | None = None, session: Session | None = None
    ) -> None:
        self._session = open_session(path, num_threads) if session is None else session
        self.engine = self._session.engine
        self.config: dict[str, Any] = self._session.facts["config"]
        self._fixed = self._session.facts["fixed"]

    def predict(
        self,
        picture: Picture,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        score_threshold: float | None = None,
    ) -> Found:
        """Detect the objects of a picture: a path, an open file, a Pillow image or an (H, W, 3) uint8 RGB array.

        min_size, max_size: shortest and longest side that the network sees, by default the model's own.
        score_threshold: only detections of a score above it, and above the one that the file was written with.

        Raises:
            UserError: a file that cannot be read, an array of another shape or type, a size below 1, one that the
                file does not take, a threshold outside 0 to 1.
        """
        c = self.config["input"]
        least = check_number(
            c["min_size"] if min_size is None else min_size, "predict: min_size", 1, whole=True
        )
        most = check_number(
            c["max_size"] if max_size is None else max_size, "predict: max_size", 1, whole=True
        )
        if score_threshold is not None:
            score_threshold = check_number(score_threshold, "predict: score_threshold", 0, 1)
        image = pixels_of(picture, "predict")
        original = (image.shape[0], image.shape[1])
        resized = resize_image(image, resize_size(*original, least, most, c["resize"]), c["resize"])
        pixels = self.padded([resized])
        found = self.detect(pixels, [resized.shape[:2]], [original], score_threshold)[0]
        found.image = picture if isinstance(picture, str | Path) else image
        return found

    def padded(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pad RGB images (h, w, 3), at the network's size, with zeros to what the file takes: (B, 3, H, W) float32.

        H and W are multiples of the network's divisor, B is the number of images, or what the file was made for.

        Raises:
            UserError: more or larger images than the file was made for.
        """
        divisor, count = self.config["input"]["size_divisor"], len(images)
        sides = zip(*(image.shape[:2] for image in images), strict=True)
        height, width = (-(-max(side) // divisor) * divisor for side in sides)
        if fixed := self._fixed.get("size"):
            if height > fixed[0] or width > fixed[1]:
                raise UserError(
                    f"the exported model takes pictures of up to {fixed[0]} x {fixed[1]} pixels, "
                    f"got {height} x {width}. Give smaller --min-size and --max-size, or export it without --size."
                )
            height, width = fixed
        if batch := self._fixed.get("batch"):
            if count > batch:
                raise UserError(f"the exported model takes {batch} pictures at a time, got {count}.")
            count = batch
        pixels = np.zeros((count, 3, height, width), np.float32)
        for image, out in zip(images, pixels):
            out[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        return pixels

    def detect(
        self,
        pixels: np.ndarray,
        image_sizes: Sequence[Size],
        original_sizes: Sequence[Size],
        score_threshold: float | None = None,
    ) -> list[Found]:
        """Detect objects in `padded` images of these (h, w) without the padding; boxes are in the original pixels."""
        given = [*image_sizes, *[(1, 1)] * (len(pixels) - len(image_sizes))]
        out = self._session.run({"images": pixels, "image_sizes": np.array(given, np.int64)})
        of_each = zip(image_sizes, original_sizes, strict=True)
        return [self._finished(out, i, *both, score_threshold) for i, both in enumerate(of_each)]

    def _finished(
        self, out: dict[str, np.ndarray], i: int, size: Size, original: Size, threshold: float | None
    ) -> Found:
        """Detections of image `i` in the pixels of its picture, without those that have no extent there."""
        n, limit = int(out["counts"][i]), np.array(original[::-1] * 2, np.float32)
        y, x = (new / old for new, old in zip(original, size, strict=True))
        boxes = out["boxes"][i, :n] * np.array([x, y, x, y], np.float32)
        boxes = np.clip(boxes, np.float32(0), limit)
        scores = out["scores"][i, :n]
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(boxes).all(1)
        if threshold is not None:
            keep &= scores > np.float32(threshold)
        head, points = self.config.get("mask_head"), self.config.get("keypoint_head") or {}
        found = Found(
            original,
            boxes[keep],
            scores[keep],
            out["labels"][i, :n][keep].astype(np.int64),
            class_names=self.config["class_names"],
            category_ids=self.config["category_ids"],
            skeleton=points.get("skeleton", ()),
        )
        if head is not None and "masks" in out:
            found.mask_probs, found.mask_threshold = (
                out["masks"][i, :n][keep].astype(np.float32),
                head["threshold"],
            )
            at_pixels = self.config["rules"]["paste"] == "torchvision"
            size_of = found.mask_probs.shape[-1]
            found.mask_boxes = whole_pixel_boxes(found.boxes, size_of) if at_pixels else found.boxes
        if "keypoints" in out:
            found.keypoints = out["keypoints"][i, :n][keep] * np.array([x, y, 1], np.float32)
        return found
