"""LabelMe: a JSON beside each image. Polygons, rectangles, circles and its bitmap masks; `imageData` is ignored.

Shapes of one label with the same group_id are parts of one object. A labels.txt gives the order of the classes.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from maskrcnn.data.json_stream import JsonStream
from maskrcnn.data.label_text import read_json, read_text
from maskrcnn.data.readers.shapes import BROKEN, ellipse, foreground, rectangle, ring_of, size_from, size_of
from maskrcnn.data.source import (
    Source,
    image_files,
    image_like,
    listed,
    other_pictures,
    sources_of,
    subfolders,
    unread,
)  # fmt: skip
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_encode

LOOKS_FOR = "LabelMe JSONs (with shapes and imagePath) in it or in its subfolders"
_DEPTH = 3  # folders below the set's that are looked into
_PEEK = 3  # files of a folder that show what it holds
_NO_CLASS = ("__ignore__", "_background_")  # LabelMe's names for what is not to be learnt


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`): the folder itself and those below it, by their names."""
    if path.is_file():
        return {"": Source(path, Path(images or path.parent), "labelme")} if _is_labelme(path) else {}
    folders = [f for f in _folders(path, _DEPTH) if any(map(_is_labelme, listed(f, "*.json")[:_PEEK]))]
    return sources_of(path, folders, "labelme", images)


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    if source.labels.is_file():
        return [source.labels]
    return [p for folder in source.folders or (source.labels,) for p in listed(folder, "*.json")]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    yield from (("classes", name) for name in _class_order(source.labels))
    number, used = 0, set()
    for path in files(source):
        content = _content(path)
        if content is None:
            continue
        name, size = _image(path, content, source.images)
        used.add(os.path.realpath(source.images / name))
        yield "images", {"id": name, "file_name": name, **size}
        for label, shapes in _objects(content["shapes"]):
            number += 1
            segmentation = _segmentation(shapes, size)
            yield (
                "annotations",
                {"id": number, "image_id": name, "category": label, "segmentation": segmentation},
            )

    if source.labels.is_dir():
        folders = source.folders or (source.labels,)
        beside = [p for f in folders for p in image_files(f) if os.path.realpath(p) not in used]
        yield from unread(beside, "pictures without a label file")
        others = [p for f in folders for p in other_pictures(f) if os.path.realpath(p) not in used]
        yield from unread(others, "pictures in formats that are not read")


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folder and those below it."""
    yield root
    if depth:
        for folder in subfolders(root):
            yield from _folders(folder, depth - 1)


def _is_labelme(path: Path) -> bool:
    stream = JsonStream(path, ("shapes", "images", "annotations"), errors="replace")
    try:
        for member, _ in stream:
            return member == "shapes"
    except UserError:
        return False
    return "shapes" in stream.seen


def _content(path: Path) -> dict[str, Any] | None:
    """A LabelMe file's content; None for a JSON of another kind among them."""
    content = read_json(path)
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    if not isinstance(content["shapes"], list):
        raise UserError(f"{path}: expected shapes as a list, got {type(content['shapes']).__name__}.")
    return content


def _image(path: Path, content: Mapping[str, Any], images: Path) -> tuple[str, dict[str, int]]:
    """The image's name in `images`, and its size: the JSON's if it has one, else the file's."""
    given = content.get("imagePath")
    # Windows' paths take / and \ alike.
    given = PureWindowsPath(given).as_posix() if isinstance(given, str) and given else ""
    beside = [image_like(folder / path.stem) for folder in (images, path.parent)]
    candidates = [path.parent / given, images / given, images / Path(given).name, *beside]
    found = next((p for p in candidates if p is not None and os.path.isfile(p)), None)
    name = given or path.stem if found is None else Path(os.path.relpath(found, images)).as_posix()
    size = size_from(content.get("imageHeight"), content.get("imageWidth"))
    return name, size or size_of(images / name)


def _objects(shapes: list[Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The shapes of each object, grouped, without those of LabelMe's names for what is no object."""
    objects: dict[Any, tuple[str, list[Mapping[str, Any]]]] = {}
    for k, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        label, group = shape.get("label"), shape.get("group_id")
        label = str(label).strip() if isinstance(label, str | int | float) else ""
        if label in _NO_CLASS:
            continue
        key = (label, group) if isinstance(group, str | int | float) else ("alone", k)
        objects.setdefault(key, (label, []))[1].append(shape)
    return list(objects.values())


def _segmentation(shapes: list[Mapping[str, Any]], size: Mapping[str, int]) -> Any:
    """Polygons, or RLE as soon as one of the shapes is a bitmap; None if not one of them has an area."""
    try:
        if any(s.get("shape_type") == "mask" for s in shapes):
            return _bitmap(shapes, size)
        rings = [_ring(s) for s in shapes]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return BROKEN
    return [r for r in rings if r is not None] or None


def _ring(shape: Mapping[str, Any]) -> list[float] | None:
    ring = ring_of(shape["points"])
    points = list(zip(ring[::2], ring[1::2]))
    match shape.get("shape_type") or "polygon":
        case "polygon" | "rotation":  # the four corners of a turned rectangle
            return ring
        case "rectangle":
            (x0, y0), (x1, y1) = points[0], points[-1] if len(points) == 2 else points[2]
            return rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
        case "circle":
            (cx, cy), edge = points
            radius = math.dist((cx, cy), edge)
            return ellipse(cx, cy, radius, radius)
    return None


def _bitmap(shapes: list[Mapping[str, Any]], size: Mapping[str, int]) -> dict[str, Any]:
    from maskrcnn.images.read import max_pixels, stored_picture

    if size["height"] * size["width"] > max_pixels():
        raise ValueError("too large a picture")
    canvas = np.zeros((size["height"], size["width"]), bool)
    for shape in shapes:
        if shape.get("shape_type") != "mask":
            continue
        with stored_picture(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            mask = foreground(picture)
        x, y = (round(v) for v in ring_of(shape["points"])[:2])
        # The window may reach outside the picture on any side.
        mask, x, y = mask[max(0, -y) :, max(0, -x) :], max(0, x), max(0, y)
        window = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
        window |= mask[: window.shape[0], : window.shape[1]]
    return rle_encode(canvas)


def _class_order(labels: Path) -> list[str]:
    """The names in labels.txt, if there is one; those that begin with _ mean none."""
    folder = labels.parent if labels.is_file() else labels
    for path in (folder / "labels.txt", folder.parent / "labels.txt"):
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            return [n for n in names if n and not n.startswith("_")]
    return []
