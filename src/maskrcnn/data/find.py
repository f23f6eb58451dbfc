"""Recognition of the data set in a folder: its format, its parts, and its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data import coco_arrays
from maskrcnn.data.classes import renumbered
from maskrcnn.data.coco import SHARE_FROM_BYTES, CocoData, read_coco
from maskrcnn.data.mask_extents import measure_rings, measure_rles, merge_rings
from maskrcnn.data.readers import FORMATS, coco, numbered
from maskrcnn.data.readers.coco import find_images
from maskrcnn.data.shared_arrays import SharedArrays, load_or_make
from maskrcnn.data.source import Source, Sources, divided
from maskrcnn.data.why_not import why_not
from maskrcnn.errors import UserError, did_you_mean

__all__ = ["find_data", "find_images", "is_other_format", "read_data"]

VERSION = 2  # of what the readers make of their files


def find_data(
    path: str | Path, images: str | Path = "", format: str = "", keypoints: bool = False
) -> Sources:
    """The training set, and the validation set if there is one, in a folder or label file of any known format.

    `images` is the folder of the images where it is not found by itself; `format` is a key of `FORMATS`, or empty
    to find it out; `keypoints`: look for COCO's annotations with key points first.

    Raises:
        UserError: nothing there, nothing of a known format, or too much to choose from.
    """
    path = Path(path)
    if format and format not in FORMATS:
        near = did_you_mean(format, FORMATS)
        raise UserError(f"--format {format!r}: expected one of {', '.join(FORMATS)}. {near}".rstrip())
    if not path.exists():
        raise UserError(f"{path}: expected a data set's folder or label file, but it does not exist.")
    if keypoints and format in ("", "coco") and (parts := coco.find(path, images, keypoints=True)):
        return divided(parts)
    for name in [format] if format else FORMATS:
        if parts := FORMATS[name].find(path, images):
            return divided(parts)
    looked = FORMATS[format].LOOKS_FOR if format else f"the signs of {', '.join(FORMATS)}"
    why = why_not(path)
    raise UserError(
        f"{path}: no data set found{': ' if why else ''}{why[:150]}. Looked for {looked}; docs/data.md shows them."
    )


def is_other_format(path: str | Path, format: str = "") -> bool:
    """Return True if the path is for `find_data`: a folder, or a label file of another format than COCO's."""
    path = Path(path)
    if path.is_dir() or format not in ("", "coco"):
        return True
    others = (reader for name, reader in FORMATS.items() if name != "coco")
    return path.is_file() and not format and any(reader.find(path) for reader in others)


def read_data(source: Source, classes: Sequence[str] = (), category_ids: Sequence[int] = ()) -> CocoData:
    """A part of a data set as arrays, whatever its format; a second time from a cache, if it is large.

    `classes` are the names of the training set (or of the model) and `category_ids` their ids (by default 1, 2, ...):
    give them to read another part alike. Its classes then go by their names, whatever numbers they have in it, and
    objects of a class that is not among these are reported. Defects inside labels do not stop the reading.

    Raises:
        UserError: a label file is missing or is not what its format says.
    """
    ids = tuple(category_ids) or tuple(range(1, len(classes) + 1))
    data = read_coco(source.labels, source.images) if source.format == "coco" else _read_other(source)
    arrays = data.arrays
    if classes and (data.class_names, data.category_ids) != (tuple(classes), ids):
        arrays = SharedArrays(*renumbered(dict(arrays), arrays.meta, classes, ids))
    notes = (*source.notes, *((kind, text) for kind, text in arrays.meta["notes"]))
    return CocoData(arrays, source.labels, source.images, notes=notes)


def _read_other(source: Source) -> CocoData:
    """A part in another format than COCO's, with the classes that it has itself."""
    reader = FORMATS[source.format]

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, meta = coco_arrays.collect(source.labels, numbered(reader.read(source)))
        _add_boxes(arrays)
        return arrays, meta

    version = f"{VERSION}:{coco_arrays.VERSION}:{source}"
    arrays = load_or_make(source.labels, version, make, SHARE_FROM_BYTES, reader.files(source), source.part)
    return CocoData(arrays, source.labels, source.images)


def _add_boxes(arrays: dict[str, np.ndarray]) -> None:
    """Boxes around the masks, where the format has none of its own."""
    _, extents = measure_rings(arrays["points"], arrays["ring_offsets"])
    around = merge_rings(extents, arrays["rings_of"])
    measure_rles(arrays, around)
    absent = np.asarray(np.isnan(arrays["boxes"]).any(1) & (around[:, 2:] > around[:, :2]).all(1))
    arrays["boxes"] = np.where(absent[:, np.newaxis], around, arrays["boxes"])
