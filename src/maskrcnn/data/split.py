"""Division of data sets: a validation part from a set that has none, or two parts with their share of each class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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


def stratified(classes: np.ndarray, share: float, names: Sequence[str]) -> np.ndarray:
    """Choose the pictures of the first of two parts, (n,) bool, so that both have their share of each class.

    Every class that at least two pictures have is in both parts. The rarest classes are dealt first, each picture to
    the part that lacks more of the class (Sechidis et al., "On the stratification of multi-label data", 2011); the
    order among pictures depends on their names alone, so that a set is always divided alike.

    classes: (n, K) bool, which classes a picture has; share: of the pictures that the first part gets, 0 to 1;
    names: n, of the pictures.
    """
    n = len(classes)
    order = np.array(sorted(range(n), key=lambda i: _key(names[i])), np.int64)
    shares = np.array([share, 1 - share])
    lacks = shares[:, None] * classes.sum(0)  # of each part and class
    room = shares * n
    has = np.zeros_like(lacks, bool)
    part = np.full(n, -1)
    while (open_ := part < 0).any():
        left = classes[open_].sum(0)
        if not left.any():  # pictures without objects
            for i in order[open_[order]]:
                part[i] = int(room.argmax())
                room[part[i]] -= 1
            break
        rarest = int(np.where(left > 0, left, n + 1).argmin())
        for i in order[open_[order] & classes[order, rarest]]:
            # A part without the class first, then the one that lacks more of it, then the one with more room.
            k = max(range(2), key=lambda k: (not has[k, rarest], lacks[k, rarest], room[k]))
            part[i] = k
            has[k] |= classes[i]
            lacks[k] -= classes[i]
            room[k] -= 1
    return part == 0
