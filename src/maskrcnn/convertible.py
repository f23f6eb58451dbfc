"""Forms of instances for other programs: COCO's results, supervision, FiftyOne."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.interchange import coco_results
from maskrcnn.masks import PredictedMasks


class Convertible:
    """Forms of `structures.Instances`, which has these fields, for other programs."""

    __slots__ = ()
    image_size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: PredictedMasks | None
    keypoints: Tensor | None
    class_names: Sequence[str]

    def to_coco(self, image_id: int | str = 0, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Convert to COCO results, one entry a detection: bbox as x, y, w, h and segmentation as compressed RLE.

        `category_ids` maps labels to a data set's ids, None for classes that it does not have; without it
        category_id is the label.
        Key points follow COCO's pixel-index convention: half a pixel less than here.

        Raises:
            UserError: an id that is no number or text, or fewer ids than classes.
        """
        return coco_results(
            _array(self.boxes.double()),
            self.scores.double().tolist(),
            self.labels.tolist(),
            None if self.masks is None else self.masks.to_rle(),
            None if self.keypoints is None else _array(self.keypoints.double()),
            image_id,
            category_ids,
        )

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`, with masks as (N, H, W) bool: mind their memory.

        Raises:
            UserError: the package supervision is missing.
        """
        sv = _package("supervision")
        labels = _array(self.labels).astype(int)
        return sv.Detections(
            xyxy=_array(self.boxes).astype(np.float32),
            mask=None if self.masks is None else np.asarray(self.masks),
            confidence=_array(self.scores).astype(np.float32),
            class_id=labels,
            data={"class_name": np.array([self._name(k) for k in labels], dtype=str)},
        )

    @classmethod
    def from_supervision(
        cls, detections: Any, image_size: tuple[int, int], class_names: Sequence[str] = ()
    ) -> Self:
        """Make instances of `supervision.Detections` on a picture of (H, W). Masks are kept as 56 x 56 probabilities of
        their own box, as predicted ones are: what is finer is lost.
        """
        masks = None
        if detections.mask is not None:
            masks = PredictedMasks.from_bitmaps(np.asarray(detections.mask, bool))
        count = len(detections)
        scores = np.ones(count) if detections.confidence is None else detections.confidence
        labels = np.zeros(count) if detections.class_id is None else detections.class_id
        fields: dict[str, Any] = {
            "image_size": image_size,
            "boxes": torch.from_numpy(np.asarray(detections.xyxy, np.float32).reshape(-1, 4).copy()),
            "scores": torch.from_numpy(np.asarray(scores, np.float32).copy()),
            "labels": torch.from_numpy(np.asarray(labels, np.int64).copy()),
            "masks": masks,
            "class_names": class_names,
        }
        return cls(**fields)

    def to_fiftyone(self) -> Any:
        """Convert to `fiftyone.Detections`: boxes and masks relative to the picture.

        Raises:
            UserError: the package fiftyone is missing.
        """
        fo = _package("fiftyone")
        height, width = self.image_size
        found = []
        for i, (box, score, label) in enumerate(
            zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        ):
            x0, y0, x1, y1 = box
            mask = None
            if self.masks is not None:  # FiftyOne stretches a mask over its box
                mask, (x, y) = self.masks.crop(i)
                x0, y0, x1, y1 = x, y, x + mask.shape[1], y + mask.shape[0]
            place = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            found.append(
                fo.Detection(label=self._name(label), bounding_box=place, mask=mask, confidence=score)
            )
        return fo.Detections(detections=found)

    def _name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"expected the package {name}, got none. Run: pip install {name}") from None
