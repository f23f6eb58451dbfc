"""Reasons why a file that looks like labels is of no known format, for the message that no data set was found."""

from __future__ import annotations

from pathlib import Path

from maskrcnn.data.json_stream import JsonStream
from maskrcnn.data.source import listed
from maskrcnn.errors import UserError

_ARCHIVES = {
    b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
}  # fmt: skip
_TABLES = (
    ".csv",
    ".tsv",
    ".xlsx",
    ".xml",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".record",
    ".tfrecord",
    ".h5",
    ".mat",
)
_YAML = (".yaml", ".yml")
_MEMBERS = ("images", "annotations", "categories")
_PEEK = 200  # files of a folder that are looked at


def why_not(path: Path) -> str:
    """Sentence part on a file, or on the first in a folder that might have been labels, that is none; else empty."""
    if path.is_file():
        return reason(path)
    candidates = [p for p in listed(path, "*", "*/*")[:_PEEK] if p.is_file()]
    endings = (".json", *_YAML, *_TABLES, ".zip", ".gz", ".tgz", ".7z", ".rar")
    for ending in endings:
        for p in candidates:
            if p.suffix.lower() == ending:
                return f"{p.relative_to(path)}: {reason(p)}"
    return ""


def reason(path: Path) -> str:
    """Reason why no reader takes this file, without its path."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return f"is {name}, to be unpacked first"
    ending = path.suffix.lower()
    if not head.strip():
        return "is empty"
    if ending in _YAML:
        return "has not the names, train and val of a YOLO data set, lists or texts"
    if ending != ".json":
        return f"is of no known format ({ending or 'no ending'}; labels are .json, .yaml, .txt or pictures)"
    return _of_json(path)


def _of_json(path: Path) -> str:
    stream = JsonStream(path, _MEMBERS)
    try:
        kinds = {member: type(element).__name__ for member, element in stream}
    except UserError as e:
        return str(e).removeprefix(f"{path}: ").rstrip(".")
    if missing := [m for m in _MEMBERS if m not in stream.seen]:
        found = ", ".join(name[:20] for name in stream.seen[:5]) or "nothing"
        return f"has {found}, but for COCO no {' and no '.join(missing)}"
    odd = next((m for m, kind in kinds.items() if kind != "dict"), "")
    return f"its {odd} are no objects" if odd else "its annotations name no image"
