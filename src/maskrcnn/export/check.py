"""Comparison of an exported model with the one that it was made from, on what exported detectors fail at: no detection
at all, a batch, another height and width.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.engines.exported import ExportedPredictor
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.structures import ImageBatch, Instances

BOX, SCORE, MASK = 0.05, 1e-3, 0.01  # pixels of the network; scores; probabilities: mean over a mask
# In fewer bits than float32 boxes and scores move, and detections near the threshold come and go: of those with such a
# score at least so many have a partner all the same.
SURE, MATCHED = 0.5, 0.5
USUAL_MASK = 0.1  # and the median difference of their masks is at most this
POINT = 0.5  # pixels
NEAR = 4.0  # pixels between partners


@dataclass(frozen=True)
class Difference:
    """Largest difference of one case. unmatched: detections of either side that the other has not, of `count`."""

    case: str
    count: int
    unmatched: int
    box: float
    score: float
    mask: float
    point: float = 0.0
    usual_mask: float = 0.0  # the median over pairs

    def passed(self, precision: str = "fp32") -> bool:
        if precision != "fp32":
            matched = self.unmatched <= (1 - MATCHED) * 2 * max(self.count, 1)
            return matched and self.usual_mask <= USUAL_MASK
        small = self.box <= BOX and self.score <= SCORE and self.mask <= MASK and self.point <= POINT
        return not self.unmatched and small

    def line(self, precision: str = "fp32") -> str:
        verdict = "ok" if self.passed(precision) else "DIFFERS"
        points = f", key points to {self.point:.4f} px" if self.point else ""
        return (
            f"{self.case}: {self.count} detections, {self.unmatched} unmatched, boxes to {self.box:.4f} px, scores to "
            f"{self.score:.1e}, masks to {self.mask:.4f}{points}: {verdict}"
        )


def compare(
    model: MaskRCNN,
    exported: ExportedPredictor,
    picture: np.ndarray,
    fixed: tuple[int, int] | None,
    batch: int | None,
    precision: str = "fp32",
) -> list[Difference]:
    """Compare both on a picture (H, W, 3) uint8 at the network's size, on noise, on three sizes at once, and on a
    smaller size; as far as a fixed size and batch allow.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    if fixed is not None:
        pixels = pixels[:, : fixed[0], : fixed[1]]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, pixels.shape, generator=generator, dtype=torch.uint8)
    _, h, w = pixels.shape
    smaller = pixels[:, : max(32, 2 * h // 3), : max(32, w // 2)]
    cases = {"the picture": [pixels], "noise": [noise], "another size": [smaller]}
    if batch is None or batch >= 3:
        cases["three sizes at once"] = [pixels, smaller, noise[:, : h // 2]]
    found = []
    for case, images in cases.items():
        ours = model.detect(_padded(model.preprocess(images), fixed))
        theirs = exported.detect(exported.preprocess(images))
        found.append(_difference(case, ours, theirs, 0.0 if precision == "fp32" else SURE))
    return found


def _padded(batch: ImageBatch, size: tuple[int, int] | None) -> ImageBatch:
    """Pad a batch to the exported model's fixed size: padding has a part in what is found at a picture's edge."""
    if size is not None:
        height, width = batch.pixels.shape[2:]
        batch.pixels = F.pad(batch.pixels, (0, size[1] - width, 0, size[0] - height))
    return batch


def _difference(case: str, ours: list[Instances], theirs: list[Instances], least: float) -> Difference:
    """Differences of detections; only those of a score above `least` are counted, and missed where they are alone."""
    worst, unmatched, count, usual = torch.zeros(4), 0, 0, list[float]()
    for a, b in zip(ours, theirs, strict=True):
        pairs = _pairs(a, b)
        count += int((a.scores > least).sum())
        for one, partners in ((a, [i for i, _ in pairs]), (b, [j for _, j in pairs])):
            alone = one.scores > least
            alone[partners] = False
            unmatched += int(alone.sum())
        for i, j in pairs:
            mask = point = torch.zeros(())
            if a.masks is not None and b.masks is not None:
                mask = (a.masks.probs[i] - b.masks.probs[j]).abs().mean()
            if a.keypoints is not None and b.keypoints is not None:
                # The middle of them: of two cells that are as good either may be taken.
                point = (a.keypoints[i] - b.keypoints[j])[:, :2].abs().amax(1).median()
            if min(float(a.scores[i]), float(b.scores[j])) > least:
                usual.append(float(mask))
            box = (a.boxes[i] - b.boxes[j]).abs().max()
            worst = torch.maximum(worst, torch.stack([box, (a.scores[i] - b.scores[j]).abs(), mask, point]))
    return Difference(case, count, unmatched, *worst.tolist(), usual_mask=statistics.median(usual or [0.0]))


def _pairs(a: Instances, b: Instances) -> list[tuple[int, int]]:
    """Pair detections of one class with the nearest box, each once: equal scores may change places."""
    distance: Tensor = torch.cdist(a.boxes, b.boxes, p=float("inf"))
    distance = torch.where(a.labels[:, None] == b.labels[None], distance, torch.inf)
    pairs = []
    while distance.numel() and float(distance.min()) < NEAR:
        i, j = divmod(int(distance.argmin()), distance.shape[1])
        pairs.append((i, j))
        distance[i], distance[:, j] = torch.inf, torch.inf
    return pairs
