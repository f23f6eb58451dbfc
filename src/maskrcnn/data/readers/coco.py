"""COCO: one JSON a part, found with its image folder in a folder of one's own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from maskrcnn.data.file_names import folder_fitting, near
from maskrcnn.data.json_stream import JsonStream
from maskrcnn.data.source import (
    Source,
    Sources,
    check_images,
    divided,
    folder_with,
    listed,
    split_of,
    subfolders,
)
from maskrcnn.errors import UserError

LOOKS_FOR = "a COCO JSON in it, in its annotations/ or in its other subfolders"
MEMBERS = ("images", "annotations", "categories")
_HEAD = {"info", "licenses", *MEMBERS}
# COCO's companions of instances_*.json, with other tasks' annotations
_KEYPOINTS = "person_keypoints"
_OTHER_TASKS = (_KEYPOINTS, "captions", "stuff", "panoptic", "image_info")
_PEEK = 20  # file names that are looked for first


def find_coco(path: str | Path, images: str | Path = "") -> Sources:
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
        return Sources(find_images(path, images))
    parts = find(path, images)
    if not parts:
        raise UserError(
            f"{path}: no COCO JSON in it, in its annotations/ or in its other subfolders. Give the JSON's own path."
        )
    return divided(parts)


def find(path: Path, images: str | Path = "", keypoints: bool = False) -> dict[str, Source]:
    """Find the parts of a COCO data set (`readers.Reader.find`); with `keypoints`, of COCO's JSONs of one folder
    those that have them.
    """
    if path.is_file():
        return {"": find_images(path, images)} if _is_coco(path) else {}
    found, broken = _instance_files(path, keypoints)
    splits = {p: split_of(p.stem, p.parent.name if p.parent != path else "") for p in (*found, *broken)}
    train, val, unnamed = ([p for p in found if splits[p] == split] for split in ("train", "val", ""))
    if not found:
        return {}
    for p, error in broken.items():  # if it is the whole of a part, another would be taken for it
        if splits[p] in ("train", "val") and splits[p] not in (splits[q] for q in found):
            raise error
    if not train and len(found) == 1:
        train, val, unnamed = found, [], []
    for split, named in (("train", train), ("val", val)):
        if len(named) != 1 and (named or split == "train"):
            names = ", ".join(str(p.relative_to(path)) for p in (named or found)[:5])
            raise UserError(
                f"{path}: expected one JSON with {split!r} in its name, found {names}. Give the JSON's own path."
            )
    notes = [("not_read", f"{p}: a COCO JSON that says neither train nor val in its name") for p in unnamed]
    notes += [("not_read", str(error)) for error in broken.values()]
    parts = {"train": find_images(train[0], images, root=path)._replace(notes=tuple(notes))}
    if val:
        try:
            parts["val"] = find_images(val[0], images, root=path)
        except UserError:
            if not images:
                raise
            parts["val"] = find_images(val[0], root=path)  # `images` holds the training set's only
    return parts


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    return [source.labels]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    yield from JsonStream(source.labels, MEMBERS)


def find_images(json: Path, images: str | Path = "", root: Path | None = None) -> Source:
    """The JSON with its image folder: `images` if given, else the one near it that holds its first file names.

    Raises:
        UserError: no such folder; the message has a file name that was looked for.
    """
    check_images(images, json)
    candidates = [Path(images)] if images else list(_image_folders(json, root or _root(json)))
    names: list[str] = []
    for limit in (_PEEK, None):  # all of them where not one of the first is found: many may be missing
        names = _file_names(json, limit)
        if not names:
            return Source(json, candidates[0])
        if folder := folder_with(names, candidates):
            return Source(json, folder)
    if folder := folder_fitting(names, candidates):
        return Source(json, folder)
    folders = (os.path.relpath(c, json.parent) for c in candidates[:3])
    looked = ", ".join("its own folder" if f == "." else f for f in folders)
    looked += " and others" * (len(candidates) > 3)
    hint = near(names[0], candidates)
    raise UserError(
        f"{json}: its images (the first is {names[0][:100]!r}) are not in {looked}.{hint} Give their folder."
    )


def _instance_files(folder: Path, keypoints: bool) -> tuple[list[Path], dict[Path, UserError]]:
    """The COCO JSONs in a folder and its subfolders, and what is wrong with JSONs that cannot be read."""
    found = [p for p in listed(folder, "*.json", "*/*.json") if p.is_file()]
    instances = [p for p in found if p.name.startswith(_KEYPOINTS)] if keypoints else []
    instances = instances or [p for p in found if not p.name.startswith(_OTHER_TASKS)] or found
    broken: dict[Path, UserError] = {}
    return [p for p in instances if _is_coco(p, broken)], broken


def _is_coco(path: Path, broken: dict[Path, UserError] | None = None) -> bool:
    stream = JsonStream(path, MEMBERS)
    try:
        for _, element in stream:
            if not isinstance(element, dict):
                return False
            if "annotations" in stream.seen:
                return "images" in stream.seen or "image_id" in element
    except UserError as e:
        if broken is not None and _may_have_been(stream):
            broken[path] = e
        return False
    return {"images", "annotations"} <= set(stream.seen)


def _may_have_been(stream: JsonStream) -> bool:
    """Tell a COCO JSON that cannot be read from results, a log and others, which are lists or have other members."""
    return stream.first != "[" and (not stream.seen or not _HEAD.isdisjoint(stream.seen))


def _file_names(json: Path, limit: int | None) -> list[str]:
    images = (e for _, e in JsonStream(json, ("images",)) if isinstance(e, dict))
    return [str(e["file_name"]) for e in islice(images, limit) if e.get("file_name")]


def _root(json: Path) -> Path:
    return json.parent.parent if json.parent.name in ("annotations", "labels") else json.parent


def _image_folders(json: Path, root: Path) -> Iterable[Path]:
    """Folders to look in, likely ones first; each once."""
    split = re.sub(rf"^(instances|{_KEYPOINTS})_", "", json.stem)
    near = (json.parent, root, root / split, json.parent / "images", root / "images", root / "images" / split)
    below = (p for base in (json.parent, root) for p in subfolders(base))
    return dict.fromkeys(p for p in (*near, *below) if p.is_dir())
