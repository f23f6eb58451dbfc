"""Split of a validation part from a data set that has none."""

from __future__ import annotations

import hashlib

import numpy as np

from maskrcnn.data.coco import CocoData

MOST = 500  # images for validation: more make the number no more useful, and every evaluation longer


def split_off(data: CocoData, fraction: float) -> tuple[CocoData, CocoData]:
    """Split off a validation part: the rest, and `fraction` of the images but at least one and at most `MOST`, whole
    images each.

    Drawn among the images with objects, in an order that depends on their file names alone: the same images every
    time, whatever the seed of the training, and a set that grows keeps most of them. Where that would leave no
    object to learn from, nothing is split off: the second part is empty.
    """
    with_objects = np.flatnonzero(data.num_objects)
    count = min(max(1, round(fraction * data.num_images)), MOST, max(len(with_objects) - 1, 0))
    order = sorted(with_objects.tolist(), key=lambda i: _key(data.file_name(i)))
    chosen = np.zeros(data.num_images, bool)
    chosen[order[:count]] = True
    return data.subset(np.flatnonzero(~chosen)), data.subset(np.flatnonzero(chosen))


def _key(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
