"""Anchors that fit a data set: sizes of its objects as the network sees them, and the sizes of anchors for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskrcnn.config import InputConfig, ModelConfig
from maskrcnn.data.coco import CocoData
from maskrcnn.images.resize import resize_size

_LEVELS = 5
_LEAST, _MOST = 4.0, 64.0  # pixels of the finest level's anchors; 4 is one place of its map
_STEPS = 97  # of the search, by a 35th of an octave
_BOXES = 20_000  # that are looked at, evenly spread: more change nothing


@dataclass(frozen=True, slots=True)
class Fit:
    """Fit of anchors to a data set: sizes, finest first, and the mean over the objects of the best overlap (IoU) that
    an anchor with an object's centre has with it; `usual`: that of the sizes 32 to 512.
    """

    sizes: tuple[float, ...]
    overlap: float
    usual: float


def object_sizes(data: CocoData, config: InputConfig) -> np.ndarray:
    """Widths and heights (N, 2) of a set's objects in pixels of the network's input at test size."""
    found = [np.zeros((0, 2))]
    boxes = data.arrays["boxes"]
    for i in range(data.num_images):
        height, width = data.sizes[i].tolist()
        index = data.annotations(i)
        if not (height and width and len(index)):
            continue
        resized = resize_size(height, width, config.min_size, config.max_size, config.resize)
        scale = np.array([resized[1] / width, resized[0] / height])
        found.append((boxes[index, 2:] - boxes[index, :2]).astype(float) * scale)
    sizes = np.concatenate(found)
    return sizes[(sizes > 0).all(1)]


def fit_anchors(sizes: np.ndarray, aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Fit:
    """Choose anchor sizes for objects (N, 2) wide and high: five, each twice the one before, whose best overlap with
    the objects is largest on average.

    Twice the size from level to level is what the pyramid's strides do, so that what a level's map can tell of an
    anchor's place stays the same.
    """
    chosen = sizes[np.unique(np.linspace(0, len(sizes) - 1, _BOXES).astype(int))] if len(sizes) else sizes
    usual = _overlap(chosen, 32.0, aspect_ratios)
    if not len(chosen):
        return Fit(tuple(32.0 * 2**k for k in range(_LEVELS)), usual, usual)
    finest = np.geomspace(_LEAST, _MOST, _STEPS)
    overlaps = [_overlap(chosen, float(size), aspect_ratios) for size in finest]
    best = round(float(finest[int(np.argmax(overlaps))]), 1)
    return Fit(tuple(best * 2**k for k in range(_LEVELS)), max(overlaps), usual)


def fitted_sizes(config: ModelConfig, data: CocoData) -> tuple[tuple[float, ...], ...]:
    """`rpn.anchor_sizes` of a model for a data set: a size a level of a pyramid, all on one map without."""
    sizes = fit_anchors(object_sizes(data, config.input), config.rpn.aspect_ratios).sizes
    return tuple((size,) for size in sizes) if config.fpn is not None else (sizes,)


def _overlap(objects: np.ndarray, finest: float, aspect_ratios: tuple[float, ...]) -> float:
    if not len(objects):
        return float("nan")
    best = np.zeros(len(objects))
    areas = objects.prod(1)
    for level in range(_LEVELS):
        for ratio in aspect_ratios:  # height / width, of one area
            side = finest * 2**level
            w, h = side / ratio**0.5, side * ratio**0.5
            both = np.minimum(objects[:, 0], w) * np.minimum(objects[:, 1], h)
            np.maximum(best, both / (areas + w * h - both), out=best)
    return float(best.mean())
