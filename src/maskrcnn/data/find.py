"""Where the JSON and the images are in a folder of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from maskrcnn.data.json_stream import JsonStream
from maskrcnn.errors import UserError

# COCO's companions of instances_*.json, with other tasks' annotations
_OTHER_TASKS = ("person_keypoints", "captions", "stuff", "panoptic", "image_info")
_PEEK = 20  # file names that are looked for first


class CocoSource(NamedTuple):
    json: Path
    images: Path


class CocoSources(NamedTuple):
    train: CocoSource
    val: CocoSource | None = None


def find_coco(path: str | Path, images: str | Path = "") -> CocoSources:
    """The training set, and the validation set if there is one, of `path`: a COCO JSON, or a folder with some.

    In a folder, JSONs are looked for in it, in `annotations/` and in its other direct subfolders. One whose name or
    folder says train is for training, one that says val (or valid, validation) for validation; a single JSON of any
    name is for training. `images` is the image folder of the training set (and of the other, if its files are there
    too); without it, the folder is the one near the JSON in which the JSON's first file names exist.

    Raises:
        UserError: nothing found, or too much to choose from; the message says what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: expected a COCO JSON or a folder that holds one, but it does not exist.")
    if path.is_file():
        return CocoSources(find_images(path, images))
    found = _instance_files(path)
    if not found:
        raise UserError(
            f"{path}: no COCO JSON in it, in its annotations/ or in its other subfolders. Give the JSON's own path."
        )
    splits = {p: _split(p, path) for p in found}
    train = [p for p in found if splits[p] == "train"]
    val = [p for p in found if splits[p] == "val"]
    if not train and len(found) == 1:
        train, val = found, []
    if len(train) != 1:
        names = ", ".join(str(p.relative_to(path)) for p in (train or found)[:5])
        raise UserError(
            f"{path}: expected one JSON with 'train' in its name, found {names}. Give the JSON's own path."
        )
    source = find_images(train[0], images, root=path)
    if len(val) != 1:
        return CocoSources(source)
    try:
        return CocoSources(source, find_images(val[0], images, root=path))
    except UserError:
        if not images:
            raise
        return CocoSources(source, find_images(val[0], root=path))  # `images` holds the training set's only


def find_images(json: Path, images: str | Path = "", root: Path | None = None) -> CocoSource:
    """The JSON with its image folder: `images` if given, else the one near it that holds its first file names.

    Raises:
        UserError: no such folder; the message has a file name that was looked for.
    """
    if images and not Path(images).is_dir():
        raise UserError(f"{images}: expected the folder of the images of {json}, but it is not a folder.")
    candidates = [Path(images)] if images else list(_image_folders(json, root or _root(json)))
    names: list[str] = []
    for limit in (_PEEK, None):  # all of them where not one of the first is found: many may be missing
        names = _file_names(json, limit)
        if not names:
            return CocoSource(json, candidates[0])
        hits = [sum((folder / name).is_file() for name in names) for folder in candidates]
        best = max(range(len(candidates)), key=lambda k: hits[k])
        if hits[best]:
            return CocoSource(json, candidates[best])
    looked = ", ".join(str(c) for c in candidates[:6]) + (" and others" if len(candidates) > 6 else "")
    raise UserError(f"{json}: its images (the first is {names[0]!r}) are not in {looked}. Give their folder.")


def _instance_files(folder: Path) -> list[Path]:
    found = sorted(p for pattern in ("*.json", "*/*.json") for p in folder.glob(pattern) if p.is_file())
    instances = [p for p in found if not p.name.startswith(_OTHER_TASKS)] or found
    return [p for p in instances if _is_coco(p)]


def _is_coco(path: Path) -> bool:
    stream = JsonStream(path, ("images", "annotations", "categories"))
    try:
        for _, element in stream:
            if not isinstance(element, dict):
                return False
            if "annotations" in stream.seen:
                return "images" in stream.seen or "image_id" in element
    except UserError:
        return False
    return {"images", "annotations"} <= set(stream.seen)


def _split(json: Path, root: Path) -> str:
    """'train', 'val', 'test' or '': the file's name decides, then its folder's."""
    relative = json.relative_to(root)
    for text in (relative.stem.lower(), relative.parent.name.lower()):
        if "train" in text:
            return "train"
        for split in ("val", "test"):
            if re.search(rf"(?<![a-z]){split}(id|idation)?(?![a-z])", text):
                return split
    return ""


def _file_names(json: Path, limit: int | None) -> list[str]:
    images = (e for _, e in JsonStream(json, ("images",)) if isinstance(e, dict))
    return [str(e["file_name"]) for e in islice(images, limit) if e.get("file_name")]


def _root(json: Path) -> Path:
    return json.parent.parent if json.parent.name in ("annotations", "labels") else json.parent


def _image_folders(json: Path, root: Path) -> Iterable[Path]:
    """Folders to look in, likely ones first; each once."""
    split = re.sub(r"^instances_", "", json.stem)
    near = (json.parent, root, root / split, json.parent / "images", root / "images", root / "images" / split)
    below = (p for base in (json.parent, root) for p in sorted(base.iterdir()) if p.is_dir())
    return dict.fromkeys(p for p in (*near, *below) if p.is_dir())
