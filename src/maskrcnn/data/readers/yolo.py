"""YOLO segmentation: `class x y x y ...` a line, relative to the image's size, in labels/ beside images/.

data.yaml names the classes and the parts, relative to its `path` or to itself: folders, whose subfolders count
too, lists of images, or single ones. Without one, images/train and images/val (or train/images and val/images) are
looked for, and classes.txt gives the names. Where labels/ has nothing, text files beside the images are
taken, else those of the one other folder beside images/ that has some. Lines of four numbers are boxes without a mask,
which the checks list.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskrcnn.data.file_names import fitting
from maskrcnn.data.label_text import read_text
from maskrcnn.data.readers.shapes import BROKEN, size_of
from maskrcnn.data.source import (
    IMAGE_SUFFIXES,
    Source,
    image_files,
    image_like,
    listed,
    other_pictures,
    split_of,
    subfolders,
    unread,
)  # fmt: skip
from maskrcnn.errors import UserError

LOOKS_FOR = "a data.yaml with names and train, or images/ and labels/ with a text file for each image"
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_UNCOMMENTED = re.compile(r"""(?:"[^"]*"|'[^']*'|[^"'#]|(?<=\S)#|["'])*""")
_MOST_CLASSES = 10_000  # a higher number is a mistake
_NAMES = "classes.txt"
_ALL = "**/*"  # in subfolders too


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`)."""
    if path.is_file():
        return _from_yaml(path) if path.suffix in (".yaml", ".yml") else {}
    yamls = sorted(p for end in ("yaml", "yml") for p in listed(path, f"*.{end}"))
    for candidate in sorted(yamls, key=lambda p: p.stem != "data"):
        parts = _from_yaml(candidate)
        if parts and (candidate.stem == "data" or any(map(_is_there, parts.values()))):
            return parts
    return _from_folders(path)


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    texts = [label for label in _label_files(source, _images(source)) if os.path.isfile(label)]
    names = [source.labels] if source.labels.is_file() else _name_files(source.labels)
    return names + texts


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    names = _class_names(source)
    highest, number = -1, 0
    images = _images(source)
    labels = _label_files(source, images)
    for image, label in zip(images, labels, strict=True):
        name = os.path.relpath(image, source.images)
        size = size_of(image)
        yield "images", {"id": name, "file_name": name, **size}
        for line in read_text(label).splitlines() if os.path.isfile(label) else ():
            if line.strip():
                number += 1
                annotation = _annotation(line, size.get("width", 0), size.get("height", 0))
                highest = max(highest, annotation["category_id"] or 0)
                yield "annotations", {"id": number, "image_id": name, **annotation}
    yield from _unread(images, labels, source.labels)
    for k in names or range(highest + 1):
        yield "categories", {"id": k, "name": names.get(k, f"class {k}")}


def _unread(
    images: Sequence[Path], labels: Sequence[Path], source: Path
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Label files without a picture, and pictures in formats that are not read."""
    places = {label.parent: image.parent for image, label in zip(images, labels, strict=True)}
    used = {*labels, source}
    texts = [p for folder in places for p in listed(folder, "*.txt") if p not in used and p.name != _NAMES]
    lists = {word for words in _PARTS.values() for word in words}
    lost = [p for p in texts if p.stem not in lists and image_like(places[p.parent] / p.stem) is None]
    yield from unread(lost, "label files without a picture")
    others = [p for folder in dict.fromkeys(places.values()) for p in other_pictures(folder)]
    yield from unread(others, "pictures in formats that are not read")


def _annotation(line: str, width: int, height: int) -> dict[str, Any]:
    words = line.split()
    category = _class_number(words[0])
    try:
        values = [float(w) for w in words[1:]]
    except ValueError:
        return {"category_id": category, "segmentation": BROKEN}
    scaled = [v * (height if k % 2 else width) for k, v in enumerate(values)]
    if len(scaled) != 4:
        return {"category_id": category, "segmentation": [scaled]}
    cx, cy, w, h = scaled
    return {"category_id": category, "bbox": [cx - w / 2, cy - h / 2, w, h]}


def _class_number(word: str) -> int | None:
    """A class as exporters write it, 0 or 0.0; None for what is none."""
    try:
        number = float(word)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < _MOST_CLASSES else None


def _from_yaml(path: Path) -> dict[str, Source]:
    content = read_yaml(path)
    if not _is_data(content):
        return {}
    root = _root(path, content)
    parts = {}
    for part, words in _PARTS.items():
        if any(content.get(word) for word in words):
            parts[part] = Source(path, root, "yolo", part)
    return parts


def _is_data(content: dict[str, Any]) -> bool:
    """Tell YOLO's names and parts from another program's settings with these words in them."""
    parts = [content[p] for p in ("train", "val") if content.get(p)]
    places = [where for part in parts for where in (part if isinstance(part, list) else [part])]
    return (
        isinstance(content.get("names"), list | dict | str)
        and bool(places)
        and all(isinstance(where, str | int) for where in places)
    )


def _is_there(source: Source) -> bool:
    try:
        _images(source)
    except UserError:
        return False
    return True


def _root(path: Path, content: dict[str, Any]) -> Path:
    """Folder that the parts' paths start from: `path`, if that is one here, else the file's own."""
    given = path.parent / str(content.get("path") or "")
    return given if os.path.isdir(given) else path.parent


def _from_folders(path: Path) -> dict[str, Source]:
    """Find parts by their folders: images/train beside labels/train, train/images beside train/labels, or images
    beside labels.
    """
    parts: dict[str, Source] = {}
    for folder in _image_folders(path):
        labels = _label_file(folder / "x.jpg").parent
        # The subfolders of images/ are parts of their own.
        pattern = "*.txt" if folder == path / "images" else "**/*.txt"
        if any(p.name != _NAMES for p in listed(labels, pattern)):
            part = split_of(folder.name, folder.parent.name if folder.parent != path else "")
            parts.setdefault(part, Source(path, path, "yolo", part))
    return parts


def _images(source: Source) -> list[Path]:
    if source.labels.is_dir():
        mine = [
            f
            for f in _image_folders(source.labels)
            if split_of(f.name, f.parent.name if f.parent != source.labels else "") == source.part
        ]
        # The subfolders of images/ are parts of their own.
        patterns = ["*" if f == source.labels / "images" else _ALL for f in mine]
        return [p for f, pattern in zip(mine, patterns, strict=True) for p in image_files(f, pattern)]
    content = read_yaml(source.labels)
    given = next(content[word] for word in _PARTS[source.part] if content.get(word))
    found = []
    for entry in given if isinstance(given, list) else [given]:
        where = _existing(source, str(entry))
        if where.is_dir():
            found += image_files(where, _ALL)
        elif where.suffix.lower() in IMAGE_SUFFIXES:
            found.append(where)
        else:
            found += _listed_images(where, source.images)
    return found


def _listed_images(path: Path, root: Path) -> list[Path]:
    """The images of a list: relative to it, or to the set's folder, or those that fit its lines there."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    found = [path.parent / line for line in lines]
    lost = [k for k, image in enumerate(found) if not os.path.isfile(image)]
    fits = fitting([lines[k] for k in lost], root)
    for n, k in enumerate(lost):
        there = fits.get(n, root / lines[k])
        found[k] = there if os.path.isfile(there) else found[k]
    return found


def _image_folders(root: Path) -> list[Path]:
    """images/, its subfolders, and the images/ of each other folder."""
    own = root / "images"
    folders = [own, *subfolders(own)] if own.is_dir() else []
    return folders + [f / "images" for f in subfolders(root) if (f / "images").is_dir()]


def _existing(source: Source, entry: str) -> Path:
    """Find the path of a part: beside the yaml too, and without the leading ../ that some exports have."""
    base, own = source.images, source.labels.parent
    plain = re.sub(r"^(\.\./)+", "", entry)
    candidates = [base / entry, own / entry, base / plain, own / plain]
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    raise UserError(
        f"{source.labels}: {source.part}: expected a folder of images or a list of them, but "
        f"{str(candidates[0])[:200]} does not exist."
    )


def _label_files(source: Source, images: Sequence[Path]) -> list[Path]:
    """Find each image's label file, which may be missing: all in labels/, all beside the images, or all in one other
    folder.

    Raises:
        UserError: several other folders beside images/ have some.
    """
    usual = [_label_file(image) for image in images]
    folders = list(dict.fromkeys(filter(None, map(_folder_of_images, images))))
    if any(map(os.path.isfile, usual)) or any(map(_has_labels, folders)):
        return usual
    beside = [image.with_suffix(".txt") for image in images]
    if any(map(os.path.isfile, beside)):
        return beside
    others: list[list[Path]] = []
    for folder in folders:
        for name in (p.name for p in subfolders(folder.parent) if p != folder):
            files = [_label_file(image, name) for image in images]
            if any(map(os.path.isfile, files)) and files not in others:
                others.append(files)
    if len(others) > 1:
        names = ", ".join(str(next(filter(os.path.isfile, files)).parent) for files in others[:3])
        raise UserError(
            f"{source.labels}: expected label files in one folder, found {names}. Call one labels/."
        )
    return others[0] if others else usual


def _has_labels(images: Path) -> bool:
    """Look for texts in labels/ beside images/, of whatever part."""
    return any(p.name != _NAMES for p in listed(images.parent / "labels", "**/*.txt"))


def _label_file(image: Path, name: str = "labels") -> Path:
    """Path of an image's label file: images/ becomes labels/ (the last one of the path), the suffix .txt."""
    folder = _folder_of_images(image)
    below = image.parent if folder is None else folder.parent / name / image.parent.relative_to(folder)
    return below / f"{image.stem}.txt"


def _folder_of_images(image: Path) -> Path | None:
    return next((folder for folder in image.parents if folder.name == "images"), None)


def _name_files(folder: Path) -> list[Path]:
    return [p for where in ("", "labels") if (p := folder / where / _NAMES).is_file()]


def _class_names(source: Source) -> dict[int, str]:
    if source.labels.is_dir():
        for path in _name_files(source.labels):
            return dict(enumerate(line.strip() for line in read_text(path).splitlines() if line.strip()))
        return {}
    names = read_yaml(source.labels)["names"]
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    found = {_class_number(str(k)): str(v) for k, v in pairs}
    if None in found:
        raise UserError(
            f"{source.labels}: names: expected a list, or names by number, got {str(names)[:100]}."
        )
    return {k: v for k, v in found.items() if k is not None}


def read_yaml(path: Path) -> dict[str, Any]:
    """The part of YAML that data.yaml uses: `key: value` at the top, lists and maps of plain values below.

    Raises:
        UserError: not text.
    """
    content: dict[str, Any] = {}
    key = ""
    for line in read_text(path).splitlines():
        text = _UNCOMMENTED.match(line)[0].rstrip()  # pyright: ignore (it matches anything)
        if not text or text == "---":
            continue
        inner = text.lstrip()
        if isinstance(content.get(key), str) and content[key][:1] in ("[", "{"):
            content[key] = _flow(f"{content[key]} {inner}")  # a list over several lines
        elif inner.startswith("- ") and key:
            if not isinstance(content.get(key), list):
                content[key] = []
            content[key].append(_scalar(inner[2:]))
        elif text == inner and ":" in text:
            key, _, value = text.partition(":")
            key = str(_scalar(key))
            content[key] = _flow(value.strip())
        elif ":" in inner and key:
            if not isinstance(content.get(key), dict):
                content[key] = {}
            name, _, value = inner.partition(":")
            content[key][_scalar(name)] = _scalar(value)
    return content


def _flow(text: str) -> Any:
    """Parse [a, b] and {0: a} on one line; an open bracket stays text until its lines have come."""
    if text[:1] == "[" and text.endswith("]"):
        return [_scalar(word) for word in _split(text[1:-1])]
    if text[:1] == "{" and text.endswith("}"):
        pairs = (word.partition(":") for word in _split(text[1:-1]))
        return {_scalar(k): _scalar(v) for k, _, v in pairs}
    return text if text[:1] in ("[", "{") else _scalar(text)


def _split(text: str) -> list[str]:
    """Split text at commas outside quotes."""
    words = re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", text)
    return [w for w in (word.strip() for word in words) if w]


def _scalar(text: str) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            return text[1:-1]
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text
