"""Place of a data set's part on the disk, and the search for files that the readers of all formats share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from maskrcnn.errors import UserError
from maskrcnn.images.checks import IMAGE_SUFFIXES

# Pictures in formats that are not read
OTHER_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".exr", ".svg", ".pdf", ".dcm", ".nii",
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2",
)  # fmt: skip
# Systems' own files and folders beside those whose names begin with a dot
_JUNK = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
)


class Source(NamedTuple):
    """Part of a data set on the disk. labels: the label file, or the folder of label files; images: where the images'
    names start; format: a key of `readers.FORMATS`; part: "train", "val", "test", or "" where the data set is not
    divided; folders: those of the label files, where there are several (below `labels`); notes: findings as
    `CocoData` has.
    """

    labels: Path
    images: Path
    format: str = "coco"
    part: str = ""
    folders: tuple[Path, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


class Sources(NamedTuple):
    train: Source
    val: Source | None = None


def divided(parts: Mapping[str, Source]) -> Sources:
    """Training and validation of the parts that were found; what no part is named train is for training too."""
    train = next(parts[name] for name in ("train", "", *parts) if name in parts)
    val = parts.get("val")
    rest = parts.get("")
    if rest is not None and rest is not train:
        where = ", ".join(str(f) for f in (rest.folders or (rest.labels,))[:3])
        note = ("not_read", f"{where}: neither train nor val by name, beside a part that is train")
        train = train._replace(notes=(*train.notes, note))
    return Sources(train, None if val is train else val)


def split_of(*texts: str) -> str:
    """'train', 'val', 'test' or '': the first text (a file's or a folder's name) that says one decides."""
    for text in texts:
        text = text.lower()
        if "train" in text:
            return "train"
        for split in ("val", "test"):
            if re.search(rf"(?<![a-z]){split}(id|idation)?(?![a-z])", text):
                return split
    return ""


def is_junk(name: str) -> bool:
    """Recognize files and folders that are a system's or a tool's own and no part of a data set.

    All hidden ones are: macOS's `._im0.jpg` beside `im0.jpg`, `.DS_Store`, `.ipynb_checkpoints`; and Windows'
    Thumbs.db, zip files' __MACOSX and the like.
    """
    return name.startswith(".") or name.lower() in _JUNK


def listed(folder: Path, *patterns: str) -> list[Path]:
    """Files and folders in a folder by any of these patterns ("*" without), in order, without junk at any depth.

    Nothing where there is no such folder, or where its name is too long for one.
    """
    if not os.path.isdir(folder):
        return []
    found = {p for pattern in patterns or ("*",) for p in folder.glob(pattern)}
    return sorted(p for p in found if not any(map(is_junk, p.relative_to(folder).parts)))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without junk."""
    return [p for p in listed(folder) if p.is_dir()]


def sources_of(
    root: Path, folders: Iterable[Path], format: str, images: str | Path = ""
) -> dict[str, Source]:
    """The parts of label folders below `root`, by what their paths say; several folders of a part are read as one."""
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        parts.setdefault(split_of(*reversed(folder.relative_to(root).parts)), []).append(folder)
    return {
        part: Source(found[0], Path(images or found[0]), format, part)
        if len(found) == 1
        else Source(root, Path(images or root), format, part, tuple(found))
        for part, found in parts.items()
    }


def unread(paths: Sequence[Path], what: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The element of a reader that tells how many of something were not read; nothing of none."""
    if paths:
        named = ", ".join(str(p) for p in paths[:2]) + ", ..." * (len(paths) > 2)
        yield "notes", ("not_read", f"{len(paths)} {what}: {named}")


def other_pictures(folder: Path) -> list[Path]:
    """Pictures in a folder in formats that are not read, in order."""
    return [p for p in listed(folder) if p.suffix.lower() in OTHER_SUFFIXES]


def folder_with(names: Sequence[str], candidates: Iterable[Path]) -> Path | None:
    """The candidate in which most of the names are files; None if not one is in any."""
    folders = list(dict.fromkeys(p for p in candidates if p.is_dir()))
    hits = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    best = max(range(len(folders)), key=lambda k: hits[k], default=-1)
    return folders[best] if best >= 0 and hits[best] else None


def check_images(images: str | Path, of: Path) -> None:
    """Refuse an image folder that is none."""
    if images and not Path(images).is_dir():
        raise UserError(f"{images}: expected the folder of the images of {of}, but it is not a folder.")


def image_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The images in a folder, in order: without those in its subfolders, or with them by the pattern "**/*"."""
    return [p for p in listed(folder, pattern) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]


def image_like(stem: Path) -> Path | None:
    """The image file with this path but for its suffix."""
    candidates = [stem.with_name(stem.name + end) for s in IMAGE_SUFFIXES for end in (s, s.upper())]
    return next((p for p in candidates if os.path.isfile(p)), None)
