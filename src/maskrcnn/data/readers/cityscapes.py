"""Cityscapes: *_instanceIds.png with label * 1000 + k for object k of a label, or *_polygons.json alone.

A number below 1000 in the picture is a label without single objects: a region of a label that has objects
elsewhere is a crowd, any other is background. Labels get their names from Cityscapes' table or, in sets of one's
own, from the polygons beside the pictures. The images are in leftImg8bit/ for gtFine/, or beside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.label_text import read_json
from maskrcnn.data.readers.shapes import BROKEN, masks_of, read_labels, ring_of, size_from, size_of
from maskrcnn.data.source import Source, image_like, listed, split_of, unread
from maskrcnn.errors import UserError

LOOKS_FOR = "*_instanceIds.png or *_polygons.json somewhere in it"
PER_LABEL = 1000
NAMES = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_ENDINGS = ("_instanceIds.png", "_polygons.json")
_GROUND_TRUTH = re.compile(r"^gt(Fine|Coarse)$")
_FILES_FOR_NAMES = 50  # that are read to learn the names of labels outside the table


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`)."""
    if path.is_file():
        return {}
    found = _labels(path)
    parts = sorted({_part(path, p) for p in found})
    base = Path(images) if images else path
    return {part: Source(path, base, "cityscapes", part) for part in parts}


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    return [p for p in _labels(source.labels) if _part(source.labels, p) == source.part]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    paths, number = files(source), 0
    from_pictures = paths[0].name.endswith(_ENDINGS[0])
    labels: set[int] = set()
    with ThreadPoolExecutor(4) as pool:
        for path, (size, objects) in zip(
            paths, pool.map(_from_picture if from_pictures else _from_polygons, paths), strict=True
        ):
            name = _image(source, path)
            size = size or size_of(source.images / name)
            yield "images", {"id": _stem(path), "file_name": name, **size}
            for annotation in objects:
                number += 1
                labels |= {annotation.get("category_id", 0)}
                yield "annotations", {"id": number, "image_id": _stem(path), **annotation}
    if from_pictures:
        known = {p.with_name(p.name.replace(*_ENDINGS)) for p in paths}
        drawn = listed(source.labels, f"**/*{_ENDINGS[1]}")
        drawn = [p for p in drawn if _part(source.labels, p) == source.part]
        yield from unread([p for p in drawn if p not in known], "polygons without a picture of ids")
        names = NAMES if labels <= NAMES.keys() else NAMES | _names_from_polygons(paths, labels)
        shown = sorted(NAMES) if labels <= NAMES.keys() else sorted(labels)
        yield from (("categories", {"id": k, "name": names.get(k, f"label {k}")}) for k in shown)


Objects = tuple[dict[str, int], list[dict[str, Any]]]  # the image's size, and annotations without ids


def _from_picture(path: Path) -> Objects:
    ids = read_labels(path)
    masks = masks_of(ids.astype(np.int64))
    with_objects = {k // PER_LABEL for k in masks if k >= PER_LABEL} | NAMES.keys()
    objects = [
        {"category_id": k // PER_LABEL if k >= PER_LABEL else k, "segmentation": mask}
        | {"iscrowd": int(k < PER_LABEL)}
        for k, mask in masks.items()
        if k >= PER_LABEL or k in with_objects
    ]
    return {"height": ids.shape[0], "width": ids.shape[1]}, objects


def _from_polygons(path: Path) -> Objects:
    content = _polygons(path)
    size = size_from(content.get("imgHeight"), content.get("imgWidth"))
    objects = []
    names = set(NAMES.values())
    for o in content["objects"]:
        label = _label(o)
        group = label.removesuffix("group")
        if o.get("deleted") or not ({label, group} & names or not _is_cityscapes(content)):
            continue
        try:
            segmentation = [ring_of(o["polygon"])] if "polygon" in o else None
        except (TypeError, ValueError, OverflowError):
            segmentation = BROKEN
        crowd = label.endswith("group") and group in names
        category = group if crowd else label
        objects.append({"category": category, "segmentation": segmentation, "iscrowd": int(crowd)})
    return size, objects


def _label(o: dict[str, Any]) -> str:
    label = o.get("label")
    return label if isinstance(label, str) else ""


def _is_cityscapes(content: dict[str, Any]) -> bool:
    """Recognize Cityscapes' own labels, of which only those in the table are of single objects."""
    labels = {_label(o) for o in content["objects"]}
    return bool(labels & {"road", "sky", "building", "vegetation", "ego vehicle", "out of roi"})


def _polygons(path: Path) -> dict[str, Any]:
    """The content of a file of polygons; what is no object among its objects is one without label and polygon."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise UserError(f"{path}: expected Cityscapes polygons with a list of objects, got none.")
    return {**content, "objects": [o if isinstance(o, dict) else {} for o in content["objects"]]}


def _names_from_polygons(paths: list[Path], labels: set[int]) -> dict[int, str]:
    """Name each label after the polygons that mostly lie on it."""
    from PIL import Image, ImageDraw

    votes: dict[int, Counter[str]] = {k: Counter() for k in labels}
    for path in paths[:_FILES_FOR_NAMES]:
        beside = path.with_name(path.name.replace(*_ENDINGS))
        if not beside.is_file():
            continue
        ids = read_labels(path).astype(np.int64)
        ids = np.where(ids >= PER_LABEL, ids // PER_LABEL, ids)
        for o in _polygons(beside)["objects"]:
            canvas = Image.new("1", (ids.shape[1], ids.shape[0]))
            try:
                ring = ring_of(o.get("polygon"))
                ImageDraw.Draw(canvas).polygon(ring, fill=1)
            except (TypeError, ValueError, OverflowError):  # or fewer points than a polygon has
                continue
            inside = ids[np.asarray(canvas)]
            if _label(o) and inside.size and (k := int(np.bincount(inside).argmax())) in votes:
                votes[k][_label(o)] += inside.size
    return {k: c.most_common(1)[0][0] for k, c in votes.items() if c}


def _labels(root: Path) -> list[Path]:
    """All label files of one kind: the pictures if there are some, else the polygons."""
    for ending in _ENDINGS:
        if found := listed(root, f"**/*{ending}"):
            return found
    return []


def _part(root: Path, path: Path) -> str:
    return split_of(*path.relative_to(root).parent.parts)


def _stem(path: Path) -> str:
    """Name of an image without _gtFine_instanceIds and the like."""
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return re.sub(r"_gt(Fine|Coarse)$", "", name)


def _image(source: Source, path: Path) -> str:
    """The image's name below source.images."""
    stem, folders = _stem(path), list(path.relative_to(source.labels).parent.parts)
    mirrored = [
        "leftImg8bit" if _GROUND_TRUTH.match(f) else "images" if f == "labels" else f for f in folders
    ]
    # `images` may be leftImg8bit itself.
    inside = mirrored[1:] if mirrored[:1] == ["leftImg8bit"] else mirrored
    places = [Path(*parts) for parts in (mirrored, inside, folders, ["images"], [])]
    for place in places:
        for name in (f"{stem}_leftImg8bit", stem):
            if image := image_like(source.images / place / name):
                return image.relative_to(source.images).as_posix()
    return (places[0] / f"{stem}_leftImg8bit.png").as_posix()
