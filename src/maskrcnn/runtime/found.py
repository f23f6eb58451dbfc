"""Detections of one picture as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.images.pictures import Picture
from maskrcnn.interchange import coco_results
from maskrcnn.masks import paste
from maskrcnn.visualize import check_picture_path, class_name, draw, picture_of, save_picture, shown_points

POINT_SCORE = 0.05  # key points that the model is less sure of are not drawn


@dataclass(slots=True, eq=False)
class Found:
    """Detections of one picture, best first, in its own pixels.

    boxes: (N, 4) float32 x0, y0, x1, y1; scores: (N,) float32; labels: (N,) int64;
    mask_probs: (N, M, M) float32 over mask_boxes (N, 4), where the model has masks; foreground from mask_threshold on;
    keypoints: (N, P, 3) float32 x, y, score, where it has key points; skeleton: the points to join in pictures.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    mask_probs: np.ndarray | None = None
    mask_boxes: np.ndarray | None = None
    mask_threshold: float = 0.5
    keypoints: np.ndarray | None = None
    class_names: Sequence[str] = ()
    category_ids: Sequence[int] = ()
    skeleton: Sequence[tuple[int, int]] = ()
    image: Picture | None = field(default=None, repr=False)  # for `draw`

    def __len__(self) -> int:
        return len(self.boxes)

    def crop(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Rasterise mask `i` within its window only: a bool bitmap and the (x, y) of its first pixel in the picture."""
        assert self.mask_probs is not None
        assert self.mask_boxes is not None
        return paste.crop(self.mask_probs[i], self.mask_boxes[i], self.image_size, self.mask_threshold)

    def masks(self) -> np.ndarray:
        """Rasterise all masks to an array (N, H, W) bool. Mind the memory: N x H x W bytes."""
        masks = np.zeros((len(self), *self.image_size), bool)
        for i in range(len(self)):
            bitmap, (x, y) = self.crop(i)
            masks[i, y : y + bitmap.shape[0], x : x + bitmap.shape[1]] = bitmap
        return masks

    def to_rle(self) -> list[dict[str, Any]]:
        """Encode each mask as COCO's compressed RLE: {"size": [H, W], "counts": str}."""
        assert self.mask_probs is not None
        assert self.mask_boxes is not None
        return paste.encode(
            zip(self.mask_probs, self.mask_boxes, strict=True), self.image_size, self.mask_threshold
        )

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Convert to COCO results with the ids of the data set that the model was trained on, as `predict` writes."""
        return coco_results(
            self.boxes.astype(np.float64),
            self.scores.astype(np.float64).tolist(),
            self.labels.tolist(),
            None if self.mask_probs is None else self.to_rle(),
            None if self.keypoints is None else self.keypoints.astype(np.float64),
            image_id,
            self.category_ids,
        )

    def draw(self, path: str | Path | None = None, *, score_threshold: float = 0.5) -> np.ndarray:
        """Draw masks, boxes, key points, names and scores from `score_threshold` on; save the picture to `path`.

        Raises:
            UserError: `path` cannot be written, or the picture is no longer there.
        """
        if path is not None:
            check_picture_path(path)
        kept = np.flatnonzero(self.scores >= score_threshold)
        labels = self.labels[kept].tolist()
        names = [class_name(self.class_names, label) for label in labels]
        drawn = draw(
            picture_of(self.image, self.image_size),
            boxes=self.boxes[kept],
            labels=labels,
            texts=[f"{name} {score:.2f}" for name, score in zip(names, self.scores[kept], strict=True)],
            mask_of=None if self.mask_probs is None else lambda i: self.crop(int(kept[i])),
            points=None if self.keypoints is None else shown_points(self.keypoints[kept], POINT_SCORE),
            skeleton=self.skeleton,
        )
        if path is not None:
            save_picture(drawn, path)
        return drawn
