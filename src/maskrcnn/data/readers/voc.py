"""Pascal VOC: SegmentationObject/ numbers the objects of each image, SegmentationClass/ their classes.

Pictures with palettes, whose indices count; 0 is background, 255 void: the border between objects, which belongs
to none. The lists in ImageSets/Segmentation make the parts. A class_names.txt or labels.txt (the background
first) names other classes than VOC's 20.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.label_text import read_text
from maskrcnn.data.readers.shapes import masks_of, read_labels
from maskrcnn.data.source import Source, image_files, image_like, listed, unread
from maskrcnn.errors import UserError

LOOKS_FOR = "Pascal VOC's SegmentationObject/ and SegmentationClass/ in it or two folders down"
VOID = 255
MOST_CLASSES = 254  # that a palette holds beside the background and VOID
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_NAME_FILES = ("class_names.txt", "labels.txt")


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`)."""
    if path.is_file():
        return {}
    patterns = ("SegmentationObject", "*/SegmentationObject", "*/*/SegmentationObject")
    found = next((p for pattern in patterns for p in listed(path, pattern) if p.is_dir()), None)
    if found is None:
        return {}
    root = found.parent
    if not (root / "SegmentationClass").is_dir():
        raise UserError(f"{root}: expected SegmentationClass/ beside SegmentationObject/, got none.")
    folder = Path(images or root / "JPEGImages")
    parts = [p for p in ("train", "val", "test") if _list(root, p).is_file()]
    return {p: Source(root, folder, "voc", p) for p in parts or ("",)}


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    root = source.labels
    extra = [root / name for name in _NAME_FILES if (root / name).is_file()]
    if source.part:
        extra.append(_list(root, source.part))
    pictures = [
        root / kind / f"{name}.png"
        for name in _names(source)
        for kind in ("SegmentationObject", "SegmentationClass")
    ]
    return extra + [p for p in pictures if os.path.isfile(p)]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    names, number = _names(source), 0
    highest = 0
    with ThreadPoolExecutor(4) as pool:
        for name, (size, objects) in zip(
            names, pool.map(lambda n: _objects(source.labels, n), names), strict=True
        ):
            image = image_like(source.images / name)
            file_name = image.name if image else f"{name}.jpg"
            yield "images", {"id": name, "file_name": file_name, "height": size[0], "width": size[1]}
            for category, mask in objects:
                number += 1
                highest = max(highest, category if category <= MOST_CLASSES else 0)
                yield (
                    "annotations",
                    {"id": number, "image_id": name, "category_id": category, "segmentation": mask},
                )
    yield from _unread(source)
    classes = _class_names(source.labels)
    for k in range(1, max(len(classes), highest) + 1):
        yield "categories", {"id": k, "name": classes[k - 1] if k <= len(classes) else f"class {k}"}


def _objects(root: Path, name: str) -> tuple[tuple[int, int], list[tuple[int, dict[str, Any]]]]:
    """The picture's size, and the class number and mask of each object."""
    path = root / "SegmentationObject" / f"{name}.png"
    numbers, kinds = read_labels(path), read_labels(root / "SegmentationClass" / f"{name}.png")
    if numbers.shape != kinds.shape:
        raise UserError(
            f"{path}: expected the size of its SegmentationClass {kinds.shape}, got {numbers.shape}."
        )
    numbers = np.where(numbers == VOID, 0, numbers)
    objects = []
    for k, mask in masks_of(numbers).items():
        own = kinds[numbers == k]
        own = own[(own != VOID) & (own != 0)]
        # An object without a class has none to learn: category 0, which is not among the categories.
        objects.append((int(np.bincount(own).argmax()) if len(own) else 0, mask))
    return (numbers.shape[0], numbers.shape[1]), objects


def _unread(source: Source) -> Iterator[tuple[str, tuple[str, str]]]:
    """Masks that are in no list, told once; or pictures without one, where there are no lists."""
    root = source.labels
    masks = listed(root / "SegmentationObject", "*.png")
    if not source.part:
        stems = {p.stem for p in masks}
        pictures = image_files(source.images) if source.images.is_dir() else []
        yield from unread([p for p in pictures if p.stem not in stems], "pictures without SegmentationObject")
    elif source.part == "train":
        lists = listed(root / "ImageSets" / "Segmentation", "*.txt")
        named = {line.split()[0] for p in lists for line in read_text(p).splitlines() if line.strip()}
        yield from unread([p for p in masks if p.stem not in named], "masks in no list")


def _list(root: Path, part: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{part}.txt"


def _names(source: Source) -> list[str]:
    if not source.part:
        return [p.stem for p in listed(source.labels / "SegmentationObject", "*.png")]
    lines = read_text(_list(source.labels, source.part)).splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _class_names(root: Path) -> list[str]:
    for name in _NAME_FILES:
        if (root / name).is_file():
            lines = [line.strip() for line in read_text(root / name).splitlines() if line.strip()]
            return [n for n in lines if n not in ("_background_", "background", "__ignore__")]
    return list(CLASSES)
