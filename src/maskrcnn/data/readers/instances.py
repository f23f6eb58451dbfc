"""One PNG an object: NAME/images/*.png and NAME/masks/*.png, as in the Data Science Bowl 2018. One class."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from maskrcnn.data.readers.shapes import foreground, size_of
from maskrcnn.data.source import Source, image_files, split_of, subfolders
from maskrcnn.errors import UserError
from maskrcnn.ops.rle import rle_encode

LOOKS_FOR = "a folder for each image with images/ and masks/ of one PNG an object"
CLASS_NAME = "object"
_PEEK = 20  # entries of a folder that show what it holds


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """As `readers.Reader` says: the folder itself, or its subfolders by their names."""
    parts: dict[str, Source] = {}
    if path.is_file():
        return parts
    for folder in (path, *subfolders(path)):
        part = "" if folder == path else split_of(folder.name)
        if part not in parts and any((p / "masks").is_dir() for p in islice(folder.iterdir(), _PEEK)):
            parts[part] = Source(folder, folder, "instances", part)
    return parts


def files(source: Source) -> list[Path]:
    """As `readers.Reader` says."""
    return [p for folder in _folders(source) for p in image_files(folder / "masks")]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """As `readers.Reader` says."""
    yield "classes", CLASS_NAME
    number, folders = 0, _folders(source)
    with ThreadPoolExecutor(4) as pool:
        for folder, masks in zip(folders, pool.map(_masks, folders), strict=True):
            image = _image(folder)
            yield (
                "images",
                {"id": folder.name, "file_name": str(image.relative_to(source.images)), **size_of(image)},
            )
            for mask in masks:
                number += 1
                yield (
                    "annotations",
                    {"id": number, "image_id": folder.name, "category": CLASS_NAME, "segmentation": mask},
                )


def _folders(source: Source) -> list[Path]:
    return [p for p in subfolders(source.labels) if (p / "masks").is_dir()]


def _image(folder: Path) -> Path:
    found = image_files(folder / "images") if (folder / "images").is_dir() else []
    if len(found) != 1:
        raise UserError(f"{folder / 'images'}: expected one image, got {len(found)}.")
    return found[0]


def _masks(folder: Path) -> list[dict[str, Any]]:
    from PIL import Image

    masks = []
    for path in image_files(folder / "masks"):
        try:
            with Image.open(path) as picture:
                masks.append(rle_encode(foreground(picture)))
        except Exception as e:  # Pillow's plug-ins raise nearly anything on a corrupt file
            raise UserError(f"{path}: cannot read the mask: {' '.join(str(e).split())}.") from None
    return masks
