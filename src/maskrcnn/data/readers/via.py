"""VGG Image Annotator: the JSON export and the project file of versions 1 and 2, and version 3's project.

Class: the region attribute called class, label, category, name, type or object, else the only one there is;
regions without any attribute are of the one class "object". Polygons, rectangles, circles and ellipses become
polygons; points and lines have no area, and the checks list them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskrcnn.data.readers.shapes import ellipse, rectangle, size_of
from maskrcnn.data.source import Source, check_images, folder_with, split_of
from maskrcnn.errors import UserError

LOOKS_FOR = "a VGG Image Annotator JSON (via_region_data.json or a project) in it or in its subfolders"
CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object")
ONE_CLASS = "object"
_HEAD = 1 << 14  # bytes that show what a JSON is
_REGIONS = re.compile(rb'^\s*\{\s*"(_via_|[^"]*"\s*:\s*\{\s*"(fileref|filename|size)"\s*:)')
_VERSION_3 = re.compile(rb'"vid_list"\s*:')
# Version 3's numbers for shapes
_SHAPES = {2: "rect", 3: "circle", 4: "ellipse", 7: "polygon"}


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """As `readers.Reader` says. Of several exports in one folder, via_region_data.json is taken."""
    if path.is_file():
        return {"": _source(path, path.parent, images)} if _is_via(path) else {}
    parts: dict[str, list[Path]] = {}
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        found = [p for p in sorted(folder.glob("*.json")) if _is_via(p)]
        default = [p for p in found if p.stem == "via_region_data"]
        for p in default or found:
            parts.setdefault(split_of(p.stem, "" if folder == path else folder.name), []).append(p)
    for files_of_part in parts.values():
        if len(files_of_part) > 1:
            names = ", ".join(str(p.relative_to(path)) for p in files_of_part[:5])
            raise UserError(
                f"{path}: expected one VIA JSON a part, or via_region_data.json, found {names}. Give a file's path."
            )
    return {part: _source(p, path, images, part) for part, (p,) in parts.items()}


def files(source: Source) -> list[Path]:
    """As `readers.Reader` says."""
    return [source.labels]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """As `readers.Reader` says."""
    entries = list(_entries(source.labels))
    attribute = _class_attribute(source.labels, [r for _, regions in entries for r in regions])
    number = 0
    for name, regions in entries:
        path = source.images / name
        yield "images", {"id": name, "file_name": name, **size_of(path)}
        for shape, attributes in regions:
            number += 1
            category = ONE_CLASS if attribute is None else _text(attributes.get(attribute))
            segmentation = _polygon(shape)
            yield (
                "annotations",
                {"id": number, "image_id": name, "category": category, "segmentation": segmentation},
            )


Region = tuple[Mapping[str, Any], Mapping[str, Any]]  # shape attributes, region attributes


def _source(json_path: Path, root: Path, images: str | Path, part: str = "") -> Source:
    check_images(images, json_path)
    names = [name for name, _ in _entries(json_path)]
    here = json_path.parent
    near = [here, here / "images", root, root / "images", root / "images" / here.name]
    near += sorted(p for p in here.iterdir() if p.is_dir())
    folder = folder_with(names, [Path(images)] if images else near)
    if folder is None and names:
        looked = images or here
        raise UserError(
            f"{json_path}: its images (the first is {names[0]!r}) are not in {looked}. Give their folder."
        )
    return Source(json_path, folder or here, "via", part)


def _is_via(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    head = head.removeprefix(b"\xef\xbb\xbf")
    return bool((_REGIONS.match(head) and b'"regions"' in head) or _VERSION_3.search(head))


def _entries(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """Each image's file name with its regions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON: {e}.") from None
    if "vid_list" in content.get("project", ()):
        yield from _entries_of_version_3(path, content)
        return
    for key, entry in content.get("_via_img_metadata", content).items():
        if not isinstance(entry, dict) or "filename" not in entry:
            raise UserError(
                f"{path}: entry {key!r}: expected an object with a filename, got {str(entry)[:60]}."
            )
        regions = entry.get("regions") or []
        regions = regions.values() if isinstance(regions, dict) else regions  # version 1 numbers them
        pairs: list[Region] = [
            (r.get("shape_attributes") or {}, r.get("region_attributes") or {}) for r in regions
        ]
        yield str(entry["filename"]), pairs


def _entries_of_version_3(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, list[Region]]]:
    attributes = content.get("attribute", {})
    regions: dict[str, list[Region]] = {}
    for entry in content.get("metadata", {}).values():
        xy = entry.get("xy") or [0]
        shape: dict[str, Any] = {"name": _SHAPES.get(xy[0], "other")}
        if shape["name"] == "polygon":
            shape |= {"all_points_x": xy[1::2], "all_points_y": xy[2::2]}
        else:
            names = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r")}
            shape |= dict(zip(names.get(shape["name"], ("cx", "cy", "rx", "ry")), xy[1:]))
        values = {}
        for key, value in (entry.get("av") or {}).items():
            attribute = attributes.get(key, {})
            values[attribute.get("aname", key)] = (attribute.get("options") or {}).get(value, value)
        if xy != [0]:  # else it is about the whole file
            regions.setdefault(str(entry.get("vid")), []).append((shape, values))
    for vid, view in content.get("view", {}).items():
        for fid in view.get("fid_list", ()):
            file = content.get("file", {}).get(str(fid))
            if file is None:
                raise UserError(f"{path}: view {vid}: its file {fid} is not in the project.")
            yield str(file.get("fname") or file.get("src")), regions.get(str(vid), [])


def _class_attribute(path: Path, regions: Iterable[Region]) -> str | None:
    """The attribute that names the class; None if no region has any.

    Raises:
        UserError: several attributes, none of them with a usual name.
    """
    counts = Counter(name for _, attributes in regions for name, value in attributes.items() if _text(value))
    if not counts:
        return None
    known = [n for usual in CLASS_ATTRIBUTES for n in counts if n.lower() == usual]
    if known:
        return max(known, key=lambda n: counts[n])
    if len(counts) > 1:
        raise UserError(
            f"{path}: expected one region attribute, or one called {', '.join(CLASS_ATTRIBUTES)}, for the class; "
            f"got {', '.join(sorted(counts))}. Rename the one with the class."
        )
    return next(iter(counts))


def _text(value: Any) -> str:
    """An attribute's value as a class name; of check boxes, those that are checked."""
    if isinstance(value, dict):
        return " ".join(sorted(k for k, checked in value.items() if checked))
    return "" if value is None else str(value).strip()


def _polygon(shape: Mapping[str, Any]) -> list[list[float]] | None:
    try:
        match shape.get("name"):
            case "polygon":
                xs, ys = shape["all_points_x"], shape["all_points_y"]
                return [[float(v) for point in zip(xs, ys, strict=True) for v in point]]
            case "rect":
                return [rectangle(*(float(shape[k]) for k in ("x", "y", "width", "height")))]
            case "circle":
                return [ellipse(float(shape["cx"]), float(shape["cy"]), float(shape["r"]), float(shape["r"]))]
            case "ellipse":
                angle = float(shape.get("theta", 0.0))
                cx, cy, rx, ry = (float(shape[k]) for k in ("cx", "cy", "rx", "ry"))
                return [ellipse(cx, cy, rx, ry, angle)]
    except (KeyError, TypeError, ValueError):
        return [[float("nan")]]  # broken, and not absent
    return None
