"""Inputs and outputs of a model: image batches, ground truth, detections.

Shape letters: B images, N objects of one image, H x W pixels, M mask cells a side.
Boxes are (x0, y0, x1, y1), absolute, continuous: pixel (i, j) covers [j, j+1] x [i, i+1].
Labels are 0..K-1. Sizes are (H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.convertible import Convertible
from maskrcnn.errors import UserError, check_number, check_shape
from maskrcnn.images.pictures import Picture
from maskrcnn.masks import InstanceMasks, PredictedMasks
from maskrcnn.ops.indexing import chosen
from maskrcnn.visualize import (
    check_picture_path,
    class_name,
    draw,
    picture_of,
    save_picture,
    shown_points,
    tight,
)

POINT_SCORE = 0.05  # key points that the model is less sure of are not drawn


@dataclass(slots=True, eq=False)
class ImageBatch:
    """Normalised images of different sizes, zero-padded at the right and the bottom to one size.

    pixels:         (B, 3, H, W) float
    image_sizes:    per image, the (h, w) of the part that is not padding: the network's own pixels
    original_sizes: per image, the (H, W) of the picture it was resized from: the user's pixels
    """

    pixels: Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.image_sizes)

    @property
    def sizes(self) -> Tensor:
        """image_sizes as (B, 2) int64, on the images' device."""
        return torch.tensor(self.image_sizes).to(self.pixels.device, non_blocking=True)


@dataclass(slots=True, eq=False)
class GroundTruth:
    """Objects of one training image, in the network's pixels.

    boxes: (N, 4) float32; labels: (N,) int64; masks: N masks, or None where a model has no mask head;
    keypoints: (N, P, 3) float32 x, y, visibility (0: not labelled, 1: hidden, 2: seen), or None likewise.
    seed: picks this image's random samples of anchors and RoIs, so that they do not depend on how the
    images are spread over processes or on what was drawn before.
    """

    boxes: Tensor
    labels: Tensor
    masks: InstanceMasks | None = None
    image_id: int | str = 0
    seed: int = 0
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> GroundTruth:
        """Copy with its tensors on `device`; masks stay where they are rasterised, on the CPU."""
        points = self.keypoints
        return dataclasses.replace(
            self,
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            keypoints=None if points is None else points.to(device, non_blocking=True),
        )

    def draw(
        self, image: np.ndarray, class_names: Sequence[str] = (), skeleton: Sequence[tuple[int, int]] = ()
    ) -> np.ndarray:
        """Draw the objects on `image` (H, W, 3) uint8, in whose pixels they are (see `visualize.draw`)."""
        labels, masks, points = self.labels.tolist(), self.masks, self.keypoints
        size = (image.shape[0], image.shape[1])
        return draw(
            image,
            boxes=_array(self.boxes),
            labels=labels,
            texts=[class_name(class_names, label) for label in labels],
            mask_of=None if masks is None else lambda i: tight(masks.select([i]).to_bitmaps(size)[0] > 0),
            points=None if points is None else shown_points(_array(points), 0.5),
            skeleton=skeleton,
        )


@dataclass(slots=True, eq=False)
class Instances(Convertible):
    """Detections of one image, best first, in the picture's own pixels.

    boxes: (N, 4) float32; scores: (N,) float32; labels: (N,) int64;
    masks: N masks, kept small until someone asks for pixels (`np.asarray(masks)` is (N, H, W) bool);
    keypoints: (N, P, 3) float32 x, y, score, for key-point models; skeleton: the points to join in pictures.
    """

    image_size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: PredictedMasks | None = None
    keypoints: Tensor | None = None
    class_names: Sequence[str] = ()
    image: Picture | None = field(default=None, repr=False)  # for `draw`
    skeleton: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        """Check the shapes against each other.

        Raises:
            UserError: a field that is no tensor, or of another shape or length than the boxes ask for.
        """
        fields = {"boxes": (4,), "scores": (), "labels": (), "keypoints": (None, 3)}
        for name, rest in fields.items():
            if (value := getattr(self, name)) is not None or name != "keypoints":
                check_shape(value, f"Instances: {name}", len(self.boxes), rest)
        if self.masks is not None and len(self.masks) != len(self.boxes):
            raise UserError(
                f"Instances: masks: expected one for each of {len(self.boxes)} boxes, got {len(self.masks)}."
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Instances:
        """Select detections: by a number, a slice, a sequence of numbers, or a mask with a bool for each.

        Raises:
            UserIndexError: a number beyond the detections.
            UserError: anything else, or a mask of another length.
        """
        numbers = chosen(index, len(self), "instances").to(self.boxes.device)
        return dataclasses.replace(
            self,
            boxes=self.boxes[numbers],
            scores=self.scores[numbers],
            labels=self.labels[numbers],
            masks=None if self.masks is None else self.masks[numbers],
            keypoints=None if self.keypoints is None else self.keypoints[numbers],
        )

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def to(self, device: torch.device | str) -> Instances:
        """Copy with its tensors on `device`."""
        fields = {name: getattr(self, name) for name in ("boxes", "scores", "labels", "masks", "keypoints")}
        return dataclasses.replace(
            self, **{k: None if x is None else x.to(device) for k, x in fields.items()}
        )

    def draw(self, path: str | Path | None = None, *, score_threshold: float = 0.5) -> np.ndarray:
        """Draw masks, boxes, key points, class names and scores on the picture that they were found in.

        Detections below `score_threshold` are left out, and key points of a score below 0.05. The result is (H, W, 3)
        uint8 (see `visualize.draw`); it is saved if `path` is given.

        Raises:
            UserError: the instances carry no picture, or one of another size; a threshold outside 0 to 1; `path`
                cannot be written.
        """
        score_threshold = check_number(score_threshold, "draw: score_threshold", 0, 1)
        if path is not None:
            check_picture_path(path)
        image, masks, points = picture_of(self.image, self.image_size), self.masks, self.keypoints
        scores = _array(self.scores)
        kept = np.flatnonzero(scores >= score_threshold)
        labels = self.labels.detach().cpu().numpy()[kept].tolist()
        names = [class_name(self.class_names, label) for label in labels]
        picture = draw(
            image,
            boxes=_array(self.boxes)[kept],
            labels=labels,
            texts=[f"{name} {score:.2f}" for name, score in zip(names, scores[kept], strict=True)],
            mask_of=None if masks is None else lambda i: masks.crop(int(kept[i])),
            points=None if points is None else shown_points(_array(points)[kept], POINT_SCORE),
            skeleton=self.skeleton,
        )
        if path is not None:
            save_picture(picture, path)
        return picture


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
