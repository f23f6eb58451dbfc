"""LabelMe: a JSON beside each image. Polygons, rectangles, circles and its bitmap masks; `imageData` is ignored.

Shapes of one label with the same group_id are parts of one object. A labels.txt gives the order of the classes.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from maskrcnn.data.json_stream import JsonStream
from maskrcnn.data.readers.shapes import ellipse, rectangle, size_of
from maskrcnn.data.source import Source, image_like, split_of
from maskrcnn.errors import UserError
from maskrcnn.ops.rle import rle_encode

LOOKS_FOR = "LabelMe JSONs (with shapes and imagePath) in it or in its subfolders"
_PEEK = 3  # files of a folder that show what it holds


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """As `readers.Reader` says: the folder itself, or its subfolders by their names."""
    if path.is_file():
        return {"": Source(path, Path(images or path.parent), "labelme")} if _is_labelme(path) else {}
    parts: dict[str, Source] = {}
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        part = "" if folder == path else split_of(folder.name)
        if part not in parts and any(map(_is_labelme, sorted(folder.glob("*.json"))[:_PEEK])):
            parts[part] = Source(folder, Path(images or folder), "labelme", part)
    return parts


def files(source: Source) -> list[Path]:
    """As `readers.Reader` says."""
    return [source.labels] if source.labels.is_file() else sorted(source.labels.glob("*.json"))


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """As `readers.Reader` says."""
    yield from (("classes", name) for name in _class_order(source.labels))
    number = 0
    for path in files(source):
        content = _content(path)
        if content is None:
            continue
        name, size = _image(path, content, source.images)
        yield "images", {"id": name, "file_name": name, **size}
        for label, shapes in _objects(content["shapes"]):
            number += 1
            segmentation = _segmentation(shapes, size)
            yield (
                "annotations",
                {"id": number, "image_id": name, "category": label, "segmentation": segmentation},
            )


def _is_labelme(path: Path) -> bool:
    stream = JsonStream(path, ("shapes", "images", "annotations"))
    try:
        for member, _ in stream:
            return member == "shapes"
    except UserError:
        return False
    return "shapes" in stream.seen


def _content(path: Path) -> dict[str, Any] | None:
    """A LabelMe file's content; None for a JSON of another kind among them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON: {e}.") from None
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    if not isinstance(content["shapes"], list):
        raise UserError(f"{path}: expected shapes as a list, got {type(content['shapes']).__name__}.")
    return content


def _image(path: Path, content: Mapping[str, Any], images: Path) -> tuple[str, dict[str, int]]:
    """The image's name in `images`, and its size: the JSON's if it has one, else the file's."""
    given = PureWindowsPath(str(content.get("imagePath") or "")).as_posix()  # takes / and \ alike
    beside = image_like(images / path.stem)
    candidates = [path.parent / given, images / given, images / Path(given).name, beside]
    found = next((p for p in candidates if p is not None and p.is_file()), None)
    name = given or path.stem if found is None else Path(os.path.relpath(found, images)).as_posix()
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if height and width:
        return name, {"height": height, "width": width}
    return name, size_of(images / name)


def _objects(shapes: list[Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The shapes of each object, grouped."""
    objects: dict[Any, tuple[str, list[Mapping[str, Any]]]] = {}
    for k, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        label, group = str(shape.get("label") or "").strip(), shape.get("group_id")
        key = ("alone", k) if group is None else (label, group)
        objects.setdefault(key, (label, []))[1].append(shape)
    return list(objects.values())


def _segmentation(shapes: list[Mapping[str, Any]], size: Mapping[str, int]) -> Any:
    """Polygons, or RLE as soon as one of the shapes is a bitmap; None if not one of them has an area."""
    try:
        if any(s.get("shape_type") == "mask" for s in shapes):
            return _bitmap(shapes, size)
        rings = [_ring(s) for s in shapes]
    except (KeyError, TypeError, ValueError, IndexError, OSError):
        return [[math.nan]]  # broken, and not absent
    return [r for r in rings if r is not None] or None


def _ring(shape: Mapping[str, Any]) -> list[float] | None:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    match shape.get("shape_type") or "polygon":
        case "polygon":
            return [v for point in points for v in point]
        case "rectangle":
            (x0, y0), (x1, y1) = points[0], points[-1] if len(points) == 2 else points[2]
            return rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
        case "circle":
            (cx, cy), edge = points
            radius = math.dist((cx, cy), edge)
            return ellipse(cx, cy, radius, radius)
    return None


def _bitmap(shapes: list[Mapping[str, Any]], size: Mapping[str, int]) -> dict[str, Any]:
    from PIL import Image

    canvas = np.zeros((size["height"], size["width"]), np.uint8)
    for shape in shapes:
        if shape.get("shape_type") != "mask":
            continue
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
        x, y = (round(float(v)) for v in shape["points"][0])
        window = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
        window |= mask[: window.shape[0], : window.shape[1]]
    return rle_encode(canvas)


def _class_order(labels: Path) -> list[str]:
    """The names in labels.txt, if there is one; those that begin with _ mean none."""
    folder = labels.parent if labels.is_file() else labels
    for path in (folder / "labels.txt", folder.parent / "labels.txt"):
        if path.is_file():
            names = [line.strip() for line in path.read_text().splitlines()]
            return [n for n in names if n and not n.startswith("_")]
    return []
