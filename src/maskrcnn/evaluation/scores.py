"""COCO's numbers for boxes, masks and key points, their table by class, and precision over recall.

The matching is the COCO API's (`masks.coco_api`); the numbers are read off its arrays here, because its own
summary knows no other limit than 100 detections. Masks are scored without their boxes, so that sizes
(small, medium, large) are those of the masks, as in detectron2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.config import ModelConfig
from maskrcnn.data.coco_arrays import is_crowd
from maskrcnn.errors import UserError
from maskrcnn.evaluation.results import check_results, points_of
from maskrcnn.evaluation.truth import FIELDS, KINDS, Truth, load_truth, read_json
from maskrcnn.masks.coco_api import precision_recall

MAX_KEYPOINT_DETECTIONS = 20
RECALL_LEVELS = np.linspace(0, 1, 101)
NUM_COCO_KEYPOINTS = 17
SIZES = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}  # areas in pixels, COCO's
OTHER_SIGMA = 0.0635  # of each key point that is not COCO's: the mean of COCO's 17


@dataclass(slots=True)
class KindResult:
    """Scores of one kind (bbox, segm or keypoints).

    numbers: COCO's, in COCO's order, -1 where the data has nothing to find;
    per_class: by class name AP, AP50, AP75 and `objects`, how many there are to find;
    precision: (T, 101, K) at IoU .50, .55, ... .95, at each of RECALL_LEVELS, by class; -1 as above;
    by_size: by class name and size ("s", "m", "l") AP and `objects`; an object of just 32^2 or 96^2 pixels is of both.
    """

    kind: str
    numbers: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: np.ndarray
    by_size: dict[str, dict[str, dict[str, float]]]

    def curve(self, iou: float = 0.5) -> np.ndarray:
        """Precision (101,) over RECALL_LEVELS at one IoU threshold, mean of the classes that have objects."""
        curves = self.precision[round((iou - 0.5) / 0.05)]
        present = curves[0] > -1
        return curves[:, present].mean(1) if present.any() else np.full(len(RECALL_LEVELS), -1.0)

    def class_curve(self, class_name: str, iou: float = 0.5) -> np.ndarray:
        """Precision (101,) over RECALL_LEVELS of one class at one IoU threshold; -1 where it has no objects."""
        return self.precision[round((iou - 0.5) / 0.05), :, list(self.per_class).index(class_name)]


@dataclass(slots=True)
class EvaluationResult:
    """Scores by kind, and what the user should know about them, a sentence each."""

    kinds: dict[str, KindResult]
    warnings: tuple[str, ...] = ()

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """{"bbox": {name: value}, ...}: what `maskrcnn evaluate --json` writes."""
        return {kind: result.numbers for kind, result in self.kinds.items()}

    @property
    def per_class(self) -> dict[str, dict[str, dict[str, float]]]:
        """{"bbox": {class name: {"AP": ..., "AP50": ..., "AP75": ..., "objects": ...}}, ...}."""
        return {kind: result.per_class for kind, result in self.kinds.items()}


def evaluate_results(
    data: str | Path | Mapping[str, Any] | Truth,
    results: str | Path | Sequence[Mapping[str, Any]],
    kinds: Sequence[str] | None = None,
    max_detections: int = 100,
    *,
    keypoint_sigmas: Sequence[float] | None = None,
) -> EvaluationResult:
    """Score COCO results against a COCO data set.

    Args:
        data, results: files, or what is in them.
        kinds: of "bbox", "segm", "keypoints"; by default those that the results hold (of no results: the data).
        max_detections: how many detections of a class count in an image (boxes and masks; key points: 20).
        keypoint_sigmas: how far key points may be off, one each; by default COCO's where there are 17, else
            `OTHER_SIGMA` for each.

    Raises:
        UserError: a file that is not what it should be, naming the entry.
    """
    check_limits(kinds, max_detections)
    truth = data if isinstance(data, Truth) else load_truth(data)
    name = "results" if not isinstance(results, (str, Path)) else str(results)
    entries = read_json(results, "COCO results") if isinstance(results, (str, Path)) else results
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise UserError(f"{name}: expected COCO results, a list of detections, got {type(entries).__name__}.")
    chosen = _choose_kinds(kinds, truth, entries, name)
    warnings = _crowded(truth, max_detections) if set(chosen) & {"bbox", "segm"} else ()
    num_keypoints = 0
    if "keypoints" in chosen:
        num_keypoints = truth.num_keypoints or points_of(entries)  # the data may have no objects
        keypoint_sigmas, said = _sigmas(truth.name, num_keypoints, keypoint_sigmas)
        warnings += said
    checked = check_results(entries, truth, chosen, name, num_keypoints)
    scored = {
        kind: _score(kind, truth.for_scoring(kind, num_keypoints), checked, max_detections, keypoint_sigmas)
        for kind in chosen
    }
    return EvaluationResult(scored, warnings)


def scored_kinds(model: ModelConfig) -> tuple[str, ...]:
    """Kinds that a model's detections are scored by: its heads decide."""
    heads = {"bbox": model.box_head, "segm": model.mask_head, "keypoints": model.keypoint_head}
    return tuple(kind for kind, head in heads.items() if head is not None)


def check_limits(kinds: Sequence[str] | None, max_detections: int) -> None:
    """Check the kinds and limits of an evaluation before any file is read.

    Raises:
        UserError: an unknown kind, or a limit that leaves COCO's AR10 without meaning.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise UserError(f"kinds: expected some of {', '.join(KINDS)}, got {kind!r}.")
    if max_detections <= 10:
        raise UserError(f"max_detections: expected more than 10, got {max_detections}.")


def _choose_kinds(kinds: Sequence[str] | None, truth: Truth, entries: Sequence[Any], name: str) -> list[str]:
    if kinds:
        return [k for k in KINDS if k in kinds]
    if not entries:
        return [k for k in KINDS if k == "bbox" or truth.holds(k)]
    held = {word for e in entries if isinstance(e, Mapping) for word in e}
    chosen = [k for k in KINDS if FIELDS[k] in held]
    if not chosen:
        raise UserError(f"{name}: entry 0: expected bbox, segmentation or keypoints, got none of them.")
    if truth.annotations:
        for kind in chosen:
            if kind != "bbox" and not truth.holds(kind):
                other = " ".join(k for k in chosen if truth.holds(k)) or "bbox"
                raise UserError(
                    f"{truth.name}: expected {FIELDS[kind]} as in {name}, got none. Use --kinds {other}."
                )
    return chosen


def _sigmas(
    name: str, count: int, given: Sequence[float] | None
) -> tuple[Sequence[float] | None, tuple[str, ...]]:
    """The sigmas to score `count` key points with, None for COCO's own, and what to tell about them."""
    if given is not None and (len(given) != count or not all(s > 0 for s in given)):
        raise UserError(
            f"keypoint_sigmas: expected {count} numbers above 0, one for each key point of {name}, "
            f"got {', '.join(map(str, given))}."
        )
    if given is not None or count in (0, NUM_COCO_KEYPOINTS):
        return given, ()
    told = (
        f"{count} key points are not COCO's 17: scored with sigma {OTHER_SIGMA} for each (--keypoint-sigmas)"
    )
    return [OTHER_SIGMA] * count, (told,)


def _score(
    kind: str,
    content: dict[str, Any],
    checked: list[dict[str, Any]],
    max_detections: int,
    sigmas: Sequence[float] | None,
) -> KindResult:
    limits = [MAX_KEYPOINT_DETECTIONS] if kind == "keypoints" else [1, 10, max_detections]
    dropped = {
        "bbox": {"segmentation", "keypoints"},
        "segm": {"bbox", "keypoints"},
        "keypoints": {"segmentation"},
    }
    entries = [{k: v for k, v in e.items() if k not in dropped[kind]} for e in checked]
    sigmas = sigmas if kind == "keypoints" else None
    precision, recall = precision_recall(content, entries, kind, limits, sigmas)
    numbers = (
        _keypoint_numbers(precision, recall) if kind == "keypoints" else _numbers(precision, recall, limits)
    )
    objects = Counter(a["category_id"] for a in content["annotations"] if not a["iscrowd"])
    whole = precision[:, :, :, 0, -1]
    per_class = {
        name: {
            "AP": _mean(whole[:, :, k]),
            "AP50": _mean(whole[0, :, k]),
            "AP75": _mean(whole[5, :, k]),
            "objects": objects[k + 1],
        }
        for k, name in enumerate(_distinct([c["name"] for c in content["categories"]]))
    }
    sizes = ("m", "l") if kind == "keypoints" else tuple(SIZES)
    areas: dict[int, list[float]] = {}
    for a in content["annotations"]:
        if not a["iscrowd"]:
            areas.setdefault(a["category_id"], []).append(a["area"])
    by_size = {
        name: {
            size: {
                "AP": _mean(precision[:, :, k, i, -1]),
                "objects": sum(SIZES[size][0] <= area <= SIZES[size][1] for area in areas.get(k + 1, [])),
            }
            for i, size in enumerate(sizes, start=1)
        }
        for k, name in enumerate(per_class)
    }
    return KindResult(kind, numbers, per_class, whole, by_size)


def _numbers(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float]:
    last = limits[-1]
    numbers = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    numbers |= {f"AP{size}": _mean(precision[..., a, -1]) for a, size in enumerate("sml", start=1)}
    numbers |= {f"AR{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate([1, 10, last])}
    return numbers | {f"AR{size}": _mean(recall[..., a, -1]) for a, size in enumerate("sml", start=1)}


def _keypoint_numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, values in (("AP", precision), ("AR", recall)):
        numbers[name] = _mean(values[..., 0, -1])
        numbers[f"{name}50"] = _mean(values[0, ..., 0, -1])
        numbers[f"{name}75"] = _mean(values[5, ..., 0, -1])
        numbers |= {f"{name}{size}": _mean(values[..., a, -1]) for a, size in enumerate("ml", start=1)}
    return numbers


def _mean(values: np.ndarray) -> float:
    """Mean of the valid values, or -1."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _distinct(names: Sequence[str]) -> list[str]:
    """Class names, numbered where two classes have the same."""
    times = Counter(names)
    return [f"{n} ({k})" if times[n] > 1 else n for k, n in enumerate(names, start=1)]


def _crowded(truth: Truth, max_detections: int) -> tuple[str, ...]:
    counts = Counter(a["image_id"] for a in truth.annotations if not is_crowd(a.get("iscrowd")))
    crowded = {image: n for image, n in counts.items() if n > max_detections}
    if not crowded:
        return ()
    image, most = max(crowded.items(), key=lambda item: item[1])
    of_class = Counter(
        (a["image_id"], a["category_id"]) for a in truth.annotations if not is_crowd(a.get("iscrowd"))
    )
    hidden = sum(max(n - max_detections, 0) for n in of_class.values())
    cost = (
        f"{hidden:,} of {sum(counts.values()):,} objects cannot be found so, which costs up to "
        f"{100 * hidden / sum(counts.values()):.1f} points of recall. "
        if hidden
        else ""
    )
    return (
        f"{len(crowded)} of {len(truth.sizes)} images have more than {max_detections} objects (image {image}: "
        f"{most}), but only {max_detections} detections of a class count in an image. {cost}"
        f"Raise --max-detections to {most} or more.",
    )
