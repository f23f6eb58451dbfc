"""VGG Image Annotator: the JSON export and the project file of versions 1 and 2, and version 3's project.

Class: the region attribute called class, label, category, name, type or object, else the only one there is;
regions without any attribute are of the one class "object". Polygons, rectangles, circles and ellipses become
polygons; points and lines have no area, and the checks list them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maskrcnn.data.file_names import fitting, folder_fitting, near
from maskrcnn.data.label_text import encoding_of, read_json
from maskrcnn.data.readers.shapes import BROKEN, ellipse, rectangle, ring_of, size_of
from maskrcnn.data.source import Source, check_images, folder_with, listed, split_of, subfolders
from maskrcnn.errors import UserError, described

LOOKS_FOR = "a VGG Image Annotator JSON (via_region_data.json or a project) in it or in its subfolders"
CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object")
ONE_CLASS = "object"
_HEAD = 1 << 14  # bytes that show what a JSON is
_REGIONS = re.compile(r'^\s*\{\s*"(_via_|[^"]*"\s*:\s*\{\s*"(fileref|filename|size)"\s*:)')
_VERSION_3 = re.compile(r'"vid_list"\s*:')
# Version 3's numbers for shapes
_SHAPES = {2: "rect", 3: "circle", 4: "ellipse", 7: "polygon"}


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`). Of several exports in one folder, via_region_data.json is
    taken.
    """
    if path.is_file():
        return {"": _source(path, path.parent, images)} if _is_via(path) else {}
    parts: dict[str, list[Path]] = {}
    for folder in (path, *subfolders(path)):
        found = [p for p in listed(folder, "*.json") if _is_via(p)]
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
    """List the label files of a part (`readers.Reader.files`)."""
    return [source.labels]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    entries = list(_entries(source.labels))
    attribute = _class_attribute(source.labels, [r for _, regions in entries for r in regions])
    number, fits = 0, fitting([name for name, _ in entries], source.images)
    for k, (name, regions) in enumerate(entries):
        path = fits.get(k, source.images / name)
        yield "images", {"id": name, "file_name": name, **size_of(path)}
        for shape, attributes in regions:
            number += 1
            category = ONE_CLASS if attribute is None else _text(attributes.get(attribute))
            segmentation = _polygon(shape)
            yield (
                "annotations",
                {"id": number, "image_id": name, "category": category, "segmentation": segmentation},
            )


Region = tuple[Any, Mapping[str, Any]]  # shape attributes, whatever they are, and region attributes


def _source(json_path: Path, root: Path, images: str | Path, part: str = "") -> Source:
    check_images(images, json_path)
    names = [name for name, _ in _entries(json_path)]
    here = json_path.parent
    candidates = [
        here,
        here / "images",
        root,
        root / "images",
        root / "images" / here.name,
        *subfolders(here),
    ]
    candidates = [Path(images)] if images else candidates
    folder = folder_with(names, candidates) or folder_fitting(names, candidates)
    if folder is None and names:
        raise UserError(
            f"{json_path}: its images (the first is {names[0][:100]!r}) are not in {images or here}."
            f"{near(names[0], candidates)} Give their folder."
        )
    return Source(json_path, folder or here, "via", part)


def _is_via(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    text = head.decode(encoding_of(head), errors="replace")
    return bool((_REGIONS.match(text) and '"regions"' in text) or _VERSION_3.search(text))


def _entries(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """Each image's file name with its regions; a region that is none has no shape and no attributes."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected VGG Image Annotator's object, got {type(content).__name__}.")
    if "vid_list" in _object(content.get("project")):
        yield from _entries_of_version_3(path, content)
        return
    for key, entry in _object(content.get("_via_img_metadata", content)).items():
        where = f"{path}: entry {key[:60]!r}"
        name = _object(entry).get("filename")
        if not isinstance(name, str):
            raise UserError(f"{where}: expected an object with a filename, got {described(entry)}.")
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # version 1 numbers them
        if not isinstance(regions, list):
            raise UserError(f"{where}: expected a list of regions, got {described(regions)}.")
        yield name, [_region(_object(r)) for r in regions]


def _region(region: Mapping[str, Any]) -> Region:
    return region.get("shape_attributes") or {}, _object(region.get("region_attributes"))


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _entries_of_version_3(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, list[Region]]]:
    attributes = _object(content.get("attribute"))
    regions: dict[str, list[Region]] = {}
    for entry in map(_object, _object(content.get("metadata")).values()):
        xy = entry.get("xy") or [0]
        if xy == [0]:  # it is about the whole file
            continue
        values = {}
        for key, value in _object(entry.get("av")).items():
            attribute = _object(attributes.get(key))
            chosen = _object(attribute.get("options")).get(value) if isinstance(value, str) else None
            values[str(attribute.get("aname", key))] = value if chosen is None else chosen
        regions.setdefault(str(entry.get("vid")), []).append((_shape_of_version_3(xy), values))
    files = _object(content.get("file"))
    for vid, view in _object(content.get("view")).items():
        for fid in _list(_object(view).get("fid_list")):
            file = _object(files.get(str(fid)))
            name = file.get("fname") or file.get("src")
            if not isinstance(name, str):
                raise UserError(f"{path}: view {vid[:60]}: its file {str(fid)[:60]} is not in the project.")
            yield name, regions.get(str(vid), [])


def _shape_of_version_3(xy: Any) -> Any:
    """Convert version 3's shape [kind, number, number, ...] to that of versions 1 and 2; None if it is no such list."""
    if not isinstance(xy, list):
        return None
    name = _SHAPES.get(xy[0], "other") if isinstance(xy[0], int) else "other"
    if name == "polygon":
        return {"name": name, "all_points_x": xy[1::2], "all_points_y": xy[2::2]}
    names = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r")}
    return {"name": name, **dict(zip(names.get(name, ("cx", "cy", "rx", "ry")), xy[1:]))}


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
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _polygon(shape: Any) -> list[list[float]] | None:
    try:
        match shape.get("name"):
            case "polygon":
                xs, ys = shape["all_points_x"], shape["all_points_y"]
                return [ring_of(list(zip(_list(xs), _list(ys), strict=True)))]
            case "rect":
                return [rectangle(*(float(shape[k]) for k in ("x", "y", "width", "height")))]
            case "circle":
                return [ellipse(float(shape["cx"]), float(shape["cy"]), float(shape["r"]), float(shape["r"]))]
            case "ellipse":
                angle = float(shape.get("theta", 0.0))
                cx, cy, rx, ry = (float(shape[k]) for k in ("cx", "cy", "rx", "ry"))
                return [ellipse(cx, cy, rx, ry, angle)]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return BROKEN
    return None
