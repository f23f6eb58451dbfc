"""Detections and objects of each image side by side, with the IoU of every pair: what all analysis begins from.

Shape letters: D detections and G objects of an image, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn.evaluation.lvis import counted
from maskrcnn.evaluation.results import check_results
from maskrcnn.evaluation.truth import FIELDS, Truth
from maskrcnn.masks.coco_api import merge_polygons, pairwise_iou

IOUS = np.linspace(0.5, 0.95, 10)  # COCO's thresholds
WRONG, IGNORED = -1, -2


@dataclass(slots=True, eq=False)
class Picture:
    """Detections of one image, best first, and its objects.

    number: of the image (see `Truth`), from 1; size: its (H, W), where known;
    found, objects: masks as RLE, or boxes x, y, w, h, of the D detections and G objects;
    scores, labels: (D,); gt_labels, crowd: (G,); labels are 0..K-1;
    annotations: (G,) index of each object among `Truth.annotations`;
    iou: (D, G); with a crowd region the share of the detection that lies in it.
    """

    number: int
    size: tuple[int, int] | None
    found: list[Any]
    scores: np.ndarray
    labels: np.ndarray
    objects: list[Any]
    gt_labels: np.ndarray
    crowd: np.ndarray
    annotations: np.ndarray
    iou: np.ndarray

    @property
    def same_class(self) -> np.ndarray:
        """Pairs (D, G) of one class."""
        return self.labels[:, None] == self.gt_labels

    def match(self, thresholds: np.ndarray, iou: np.ndarray | None = None) -> np.ndarray:
        """Match detections to objects of their class as COCO does: (T, D) the object of each, WRONG or IGNORED.

        Better scores choose first, each the free object that it overlaps most; what finds none but lies in a crowd
        region is ignored. `iou` (D, G) stands in for the pictures' own.
        """
        iou = np.where(self.same_class, self.iou if iou is None else iou, -1.0)
        least = np.minimum(thresholds, 1 - 1e-10)
        matched = np.full((len(least), len(self.scores)), WRONG)
        real = np.flatnonzero(~self.crowd)
        free = np.ones((len(least), len(real)), bool)
        rows = np.arange(len(least))
        for d in np.flatnonzero((iou[:, real] >= least.min()).any(1)).tolist():
            open_to = np.where(free & (iou[d, real] >= least[:, None]), iou[d, real], -1.0)
            best = len(real) - 1 - open_to[:, ::-1].argmax(1)  # of equal ones the last
            hit = open_to[rows, best] >= 0
            matched[hit, d] = real[best[hit]]
            free[rows[hit], best[hit]] = False
        if self.crowd.any():
            in_crowd = iou[:, self.crowd].max(1) >= least[:, None]
            matched[(matched == WRONG) & in_crowd] = IGNORED
        return matched


@dataclass(slots=True, eq=False)
class Pairs:
    """All images of a data set with their detections; kind: "segm" or "bbox", whose IoU it is."""

    kind: str
    class_names: tuple[str, ...]
    pictures: list[Picture]

    @property
    def num_objects(self) -> np.ndarray:
        """Objects to find (K,) of each class; crowd regions are none."""
        counts = np.zeros(len(self.class_names), int)
        for p in self.pictures:
            np.add.at(counts, p.gt_labels[~p.crowd], 1)
        return counts


def pair(
    truth: Truth,
    results: Sequence[Mapping[str, Any]],
    kind: str,
    max_detections: int = 100,
    name: str = "results",
) -> Pairs:
    """Pair COCO results with the objects of their images; the best `max_detections` of a class in an image count.

    name: of the results, for messages.

    Raises:
        UserError: a result or an object that cannot be scored by `kind`.
    """
    checked = check_results(results, truth, [kind], name)
    if truth.federated is not None:
        checked = counted(checked, truth.federated, max_detections)
    objects = truth.for_scoring(kind)["annotations"]
    found_in, objects_in = _by_image(checked), _by_image(objects)
    pictures = []
    for number, size in enumerate(truth.sizes, start=1):
        mine = _best([checked[i] for i in found_in.get(number, [])], max_detections)
        index = objects_in.get(number, [])
        theirs = [objects[i] for i in index]
        crowd = np.array([bool(o["iscrowd"]) for o in theirs], bool)
        found = [e[FIELDS[kind]] for e in mine]
        there = [_shape(o[FIELDS[kind]], size) for o in theirs]
        pictures.append(
            Picture(
                number,
                size,
                found,
                np.array([e["score"] for e in mine], float),
                np.array([e["category_id"] for e in mine], int) - 1,
                there,
                np.array([o["category_id"] for o in theirs], int) - 1,
                crowd,
                np.array(index, int),
                pairwise_iou(found, there, crowd),
            )
        )
    return Pairs(kind, truth.class_names, pictures)


def _by_image(entries: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    index: dict[int, list[int]] = {}
    for i, entry in enumerate(entries):
        index.setdefault(entry["image_id"], []).append(i)
    return index


def _best(entries: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Sort the entries of an image by score, and leave the best `limit` of each class."""
    taken: dict[int, int] = {}
    kept = []
    for entry in sorted(entries, key=lambda e: -e["score"]):
        count = taken[entry["category_id"]] = taken.get(entry["category_id"], 0) + 1
        if count <= limit:
            kept.append(entry)
    return kept


def _shape(given: Any, size: tuple[int, int] | None) -> Any:
    """The box as it is, the mask as RLE."""
    if isinstance(given, Mapping) or not given or not isinstance(given[0], list):
        return given
    assert size is not None  # `Truth.for_scoring` refuses masks without
    return merge_polygons(given, size)
