"""Pascal VOC: SegmentationObject/ numbers the objects of each picture, SegmentationClass/ their classes.

Where objects overlap a pixel belongs to the smaller one, so that what is held or lies on top stays whole. Crowds and
objects without a mask are left out. Numbers beyond what a palette holds are written in 16 bits; 255 is no object's, for
it means the border between objects to VOC's readers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import numpy as np

from maskrcnn.data.readers.voc import MOST_CLASSES, VOID
from maskrcnn.data.writers.labelled import Job, LabelledPicture
from maskrcnn.errors import UserError
from maskrcnn.files import atomic_path, write_atomic

PICTURES = "JPEGImages"
_MOST_OBJECTS = 65534


def encode(picture: LabelledPicture, job: Job) -> tuple[bytes, bytes]:
    """Paint a picture's objects and their classes, as two PNG files (`Writer.encode`).

    Raises:
        UserError: more classes or objects than the pictures can number.
    """
    if len(job.class_names) > MOST_CLASSES:
        raise UserError(
            f"{job.out}: expected at most {MOST_CLASSES} classes for voc, got {len(job.class_names)}. Take coco."
        )
    kept = [o for o in picture.objects if not o.crowd and o.segmentation is not None]
    if len(kept) > _MOST_OBJECTS:
        raise UserError(
            f"{picture.path}: expected at most {_MOST_OBJECTS} objects for voc, got {len(kept)}. Take coco."
        )
    crops = [(o.label, *o.crop(picture.size)) for o in kept]
    crops.sort(key=lambda crop: -int(crop[1].sum()))
    objects, classes = np.zeros(picture.size, np.uint16), np.zeros(picture.size, np.uint8)
    for k, (label, crop, (x, y)) in enumerate(crops, start=1):
        inside = crop > 0
        window = slice(y, y + crop.shape[0]), slice(x, x + crop.shape[1])
        objects[window][inside] = k if k < VOID else k + 1
        classes[window][inside] = label + 1
    return _png(objects if len(crops) >= VOID else objects.astype(np.uint8)), _png(classes)


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, tuple[bytes, bytes]], None]]:
    """Write two pictures for each, and the list of the part (`Writer.writing`)."""
    with (
        atomic_path(job.out / "ImageSets" / "Segmentation" / f"{job.part or 'train'}.txt") as temporary,
        open(temporary, "w", encoding="utf-8") as names,
    ):

        def add(picture: LabelledPicture, painted: tuple[bytes, bytes]) -> None:
            name = PurePath(picture.name).with_suffix(".png")
            write_atomic(job.out / "SegmentationObject" / name, painted[0])
            write_atomic(job.out / "SegmentationClass" / name, painted[1])
            names.write(f"{name.with_suffix('')}\n")

        yield add


def finish(job: Job, parts: Sequence[str]) -> None:
    """Write class_names.txt (`Writer.finish`)."""
    write_atomic(job.out / "class_names.txt", "".join(f"{name}\n" for name in job.class_names))


def _png(numbers: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(numbers)
    if numbers.dtype == np.uint8:
        picture = picture.convert("P")
        picture.putpalette(_palette())
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _palette() -> bytes:
    """VOC's colours: bit k of the number's three lowest bits goes to bit 7 of red, green, blue, and so on."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (numbers >> (3 * level + channel)) & 1
            colours[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return colours.tobytes()
