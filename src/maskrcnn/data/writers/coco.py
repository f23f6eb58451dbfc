"""COCO: one JSON a part, annotations/instances_PART.json, and its pictures in PART/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from maskrcnn.data.writers.labelled import Job, LabelledObject, LabelledPicture
from maskrcnn.files import atomic_path
from maskrcnn.masks.rle import Runs, write_counts

PICTURES = "{part}"


def encode(picture: LabelledPicture, job: Job) -> list[dict[str, Any]]:
    """Describe a picture's objects as annotations without numbers (`Writer.encode`)."""
    return [_annotation(o, picture.size, job) for o in picture.objects]


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, list[dict[str, Any]]], None]]:
    """Open a part's JSON (`Writer.writing`)."""
    images: list[dict[str, Any]] = []
    count = 0
    with (
        atomic_path(job.out / "annotations" / f"instances_{job.part or 'all'}.json") as temporary,
        open(temporary, "w") as file,
    ):

        def add(picture: LabelledPicture, annotations: list[dict[str, Any]]) -> None:
            nonlocal count
            height, width = picture.size
            number = len(images) + 1
            images.append({"id": number, "file_name": picture.name, "height": height, "width": width})
            for annotation in annotations:
                count += 1
                entry = {"id": count, "image_id": number, **annotation}
                file.write((",\n" if count > 1 else "\n") + json.dumps(entry))

        file.write('{"annotations": [')
        yield add
        file.write('\n],\n"images": ' + _lines(images))
        file.write(',\n"categories": ' + _lines(_categories(job)) + "}\n")


def finish(job: Job, parts: Sequence[str]) -> None:
    """Do nothing: each JSON has the classes (`Writer.finish`)."""


def _annotation(o: LabelledObject, size: tuple[int, int], job: Job) -> dict[str, Any]:
    x0, y0, x1, y1 = o.box
    entry: dict[str, Any] = {
        "category_id": job.id_of(o.label),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": int(o.crowd),
    }
    if o.segmentation is not None:
        starts, ends = o.runs(size)
        entry["area"] = int((ends - starts).sum())
        entry["segmentation"] = o.segmentation
        if o.crowd and isinstance(o.segmentation, list):  # COCO's own tools expect RLE of a crowd
            runs = Runs(starts, ends, starts * 0, 1)
            entry["segmentation"] = {"size": list(size), "counts": write_counts(runs, size[0] * size[1])[0]}
    if o.keypoints is not None:
        entry |= {"keypoints": o.keypoints, "num_keypoints": sum(v > 0 for v in o.keypoints[2::3])}
    if o.score is not None:
        entry["score"] = o.score
    return entry


def _categories(job: Job) -> list[dict[str, Any]]:
    points: dict[str, Any] = {}
    if job.keypoint_names:
        points = {
            "keypoints": list(job.keypoint_names),
            "skeleton": [[a + 1, b + 1] for a, b in job.skeleton],
        }
    return [{"id": job.id_of(k), "name": name, **points} for k, name in enumerate(job.class_names)]


def _lines(entries: list[dict[str, Any]]) -> str:
    return "[" + ",".join("\n" + json.dumps(entry) for entry in entries) + "\n]"
