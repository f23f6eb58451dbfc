"""One PNG an object: NAME/images/*.png and NAME/masks/*.png, as in the Data Science Bowl 2018. One class."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from maskrcnn.data.readers.shapes import foreground, size_of
from maskrcnn.data.source import Source, image_files, sources_of, subfolders, unread
from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_encode

LOOKS_FOR = "a folder for each image with images/ and masks/ of one PNG an object"
CLASS_NAME = "object"
_DEPTH = 2  # folders below the set's that are looked into


def find(path: Path, images: str | Path = "") -> dict[str, Source]:
    """Find the parts of a data set (`readers.Reader.find`): the folder itself and those below it, by their names."""
    return {} if path.is_file() else sources_of(path, _sets(path, _DEPTH), "instances")


def _sets(folder: Path, depth: int) -> Iterator[Path]:
    """The folders of folders of images, from `folder` downward."""
    below = [p for p in subfolders(folder) if not _is_image(p)]
    if any(map(_is_image, subfolders(folder))):
        yield folder
    for other in below if depth else ():
        yield from _sets(other, depth - 1)


def _is_image(folder: Path) -> bool:
    return (folder / "masks").is_dir()


def files(source: Source) -> list[Path]:
    """List the label files of a part (`readers.Reader.files`)."""
    return [p for folder in _folders(source) for p in image_files(folder / "masks")]


def read(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a part (`readers.Reader.read`)."""
    yield "classes", CLASS_NAME
    number, folders = 0, _folders(source)
    with ThreadPoolExecutor(4) as pool:
        for folder, masks in zip(folders, pool.map(_masks, folders), strict=True):
            image, name = _image(folder), folder.relative_to(source.labels).as_posix()
            file_name = str(image.relative_to(source.images))
            yield "images", {"id": name, "file_name": file_name, **size_of(image)}
            for mask in masks:
                number += 1
                yield (
                    "annotations",
                    {"id": number, "image_id": name, "category": CLASS_NAME, "segmentation": mask},
                )

    below = [p for folder in source.folders or (source.labels,) for p in subfolders(folder)]
    bare = [p for p in below if not _is_image(p) and (p / "images").is_dir()]
    yield from unread([p for p in bare if image_files(p / "images")], "images without masks/")


def _folders(source: Source) -> list[Path]:
    return [p for folder in source.folders or (source.labels,) for p in subfolders(folder) if _is_image(p)]


def _image(folder: Path) -> Path:
    found = image_files(folder / "images") if (folder / "images").is_dir() else []
    if len(found) != 1:
        raise UserError(f"{folder / 'images'}: expected one image, got {len(found)}.")
    return found[0]


def _masks(folder: Path) -> list[dict[str, Any]]:
    from maskrcnn.images.read import stored_picture

    masks = []
    for path in image_files(folder / "masks"):
        with stored_picture(path) as picture:
            masks.append(rle_encode(foreground(picture)))
    return masks
