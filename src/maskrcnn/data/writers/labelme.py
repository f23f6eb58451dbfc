"""LabelMe: a JSON for each picture, with polygons; parts of one object have one group_id.

In a data set of one's own the JSON lies beside the picture. Beside predictions it names the picture where it is. A
score is the shape's description, which LabelMe shows. Crowds are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from maskrcnn.data.writers.labelled import Job, LabelledPicture
from maskrcnn.files import write_atomic

PICTURES = "{part}"
_VERSION = "5.5.0"  # whose form of the file this is


def encode(picture: LabelledPicture, job: Job) -> str:
    """Write a picture's labels as JSON (`Writer.encode`)."""
    shapes: list[dict[str, Any]] = []
    for number, o in enumerate((o for o in picture.objects if not o.crowd), start=1):
        rings, kind = o.rings(job.tolerance), "polygon"
        if o.segmentation is None:
            rings, kind = [list(o.box)], "rectangle"
        shapes += [
            {
                "label": job.name_of(o.label),
                "points": [[x, y] for x, y in zip(ring[::2], ring[1::2])],
                "group_id": number if len(rings) > 1 else None,
                "description": "" if o.score is None else f"score {o.score:.3f}",
                "shape_type": kind,
                "flags": {},
            }
            for ring in rings
        ]
    content = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(os.path.relpath(picture.path, _path(picture, job).parent)).as_posix(),
        "imageData": None,
        "imageHeight": picture.size[0],
        "imageWidth": picture.size[1],
    }
    return json.dumps(content, ensure_ascii=False)


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, str], None]]:
    """Write a JSON for each picture (`Writer.writing`)."""
    yield lambda picture, text: write_atomic(_path(picture, job), text)


def finish(job: Job, parts: Sequence[str]) -> None:
    """Write labels.txt, which LabelMe takes the classes from (`Writer.finish`)."""
    write_atomic(job.out / "labels.txt", "".join(f"{name}\n" for name in job.class_names))


def _path(picture: LabelledPicture, job: Job) -> Path:
    return job.out / job.part / PurePath(picture.name).with_suffix(".json")
