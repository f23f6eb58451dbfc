"""YOLO segmentation: `class x y x y ...` a line, relative to the picture's size, labels/PART/ beside images/PART/.

A line is one polygon, so that an object of several parts or with holes is written with slits between them. Crowds are
left out, an object without a mask is a line of its box, and scores go to scores/PART/, a number a line, in the order
of the labels: in labels/ they would be read as a coordinate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

from maskrcnn.data.writers.labelled import Job, LabelledObject, LabelledPicture
from maskrcnn.files import write_atomic

PICTURES = "images/{part}"


def encode(picture: LabelledPicture, job: Job) -> tuple[str, str]:
    """Write a picture's labels and scores as text (`Writer.encode`)."""
    kept = [o for o in picture.objects if not o.crowd]
    lines = [f"{o.label} {_coordinates(o, picture.size, job.tolerance)}\n" for o in kept]
    return "".join(lines), "".join(f"{o.score:.6g}\n" for o in kept if o.score is not None)


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, tuple[str, str]], None]]:
    """Write a text file for each picture (`Writer.writing`)."""

    def add(picture: LabelledPicture, texts: tuple[str, str]) -> None:
        name = PurePath(picture.name).with_suffix(".txt")
        write_atomic(job.out / "labels" / job.part / name, texts[0])
        if texts[1]:
            write_atomic(job.out / "scores" / job.part / name, texts[1])

    yield add


def finish(job: Job, parts: Sequence[str]) -> None:
    """Write data.yaml, or classes.txt where there are no parts (`Writer.finish`)."""
    if not any(parts):
        write_atomic(job.out / "classes.txt", "".join(f"{name}\n" for name in job.class_names))
        return
    named = [part for part in ("train", "val", "test") if part in parts]
    # YOLO's own tools want both, and a string in JSON is one in YAML.
    lines = [f"{part}: images/{part}" for part in named] + ["names:"]
    lines += [f"  {k}: {json.dumps(name, ensure_ascii=False)}" for k, name in enumerate(job.class_names)]
    write_atomic(job.out / "data.yaml", "\n".join(lines) + "\n")


def _coordinates(o: LabelledObject, size: tuple[int, int], tolerance: float) -> str:
    height, width = size
    if not (ring := o.ring(tolerance)):
        x0, y0, x1, y1 = o.box
        ring = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    return " ".join(f"{v / (height if k % 2 else width):.7g}" for k, v in enumerate(ring))
