"""COCO's results: predictions.json, an entry a detection, all pictures in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from maskrcnn.data.writers import Job, LabelledPicture
from maskrcnn.errors import UserError
from maskrcnn.files import atomic_path

PREDICTIONS = "predictions.json"
PICTURES = ""


def encode(picture: LabelledPicture, job: Job) -> list[str]:
    """Write a picture's detections as JSON, one each (`Writer.encode`).

    category_id is the data set's id where the job has ids, else the label.

    Raises:
        UserError: fewer ids than classes.
    """
    entries = []
    for o in picture.objects:
        if job.category_ids and o.label >= len(job.category_ids):
            raise UserError(
                f"category_ids: expected an id for each class, {o.label + 1} or more, got {len(job.category_ids)}."
            )
        x0, y0, x1, y1 = o.box
        entry: dict[str, Any] = {
            "image_id": picture.image_id,
            "category_id": job.category_ids[o.label] if job.category_ids else o.label,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": o.score,
        }
        if o.segmentation is not None:
            entry["segmentation"] = o.segmentation
        if o.keypoints is not None:
            entry["keypoints"] = o.keypoints
        if o.track is not None:
            entry["track_id"] = o.track
        entries.append(json.dumps(entry))
    return entries


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, list[str]], None]]:
    """Open predictions.json; entries go to the disk as they come (`Writer.writing`)."""
    count = 0
    with atomic_path(job.out / PREDICTIONS) as temporary, open(temporary, "w") as file:

        def add(_: LabelledPicture, entries: list[str]) -> None:
            nonlocal count
            for entry in entries:
                file.write((",\n" if count else "\n") + entry)
                count += 1

        file.write("[")
        yield add
        file.write("\n]\n")


def finish(job: Job, parts: Sequence[str]) -> None:
    """Do nothing (`Writer.finish`)."""
