"""Label Studio: tasks with polygons, label_studio_PART.json, and the labelling interface for them.

An object is one polygon, in percent of the picture, with slits between its parts and to its holes: brush strokes fail
silently in its importer, as its users report (HumanSignal/label-studio#7998). What a model found are predictions, with
scores; what people drew are annotations. Pictures are named as local files, `/data/local-files/?d=NAME`: start Label
Studio with LOCAL_FILES_DOCUMENT_ROOT at the folder that the names start at. Crowds are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from maskrcnn.data.writers.labelled import Job, LabelledObject, LabelledPicture
from maskrcnn.files import atomic_path, write_atomic

PICTURES = "{part}"


def encode(picture: LabelledPicture, job: Job) -> str:
    """Write a picture's task as JSON (`Writer.encode`)."""
    kept = [o for o in picture.objects if not o.crowd]
    regions = [_region(k, o, picture.size, job) for k, o in enumerate(kept, start=1)]
    scores = [o.score for o in kept if o.score is not None]
    where = PurePath(job.part, picture.name) if job.part else picture.path
    task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={quote(where.as_posix())}"}}
    if not job.part:  # a data set's parts have names, predictions have none
        mean = sum(scores) / max(len(scores), 1)
        task["predictions"] = [{"model_version": "maskrcnn", "score": mean, "result": regions}]
    else:
        task["annotations"] = [{"result": regions}]
    return json.dumps(task, ensure_ascii=False)


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, str], None]]:
    """Open a part's list of tasks (`Writer.writing`)."""
    name = f"label_studio_{job.part}.json" if job.part else "label_studio.json"
    first = True
    with atomic_path(job.out / name) as temporary, open(temporary, "w", encoding="utf-8") as file:

        def add(_: LabelledPicture, task: str) -> None:
            nonlocal first
            file.write(("\n" if first else ",\n") + task)
            first = False

        file.write("[")
        yield add
        file.write("\n]\n")


def finish(job: Job, parts: Sequence[str]) -> None:
    """Write the labelling interface, to be pasted into the project's settings (`Writer.finish`)."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in job.class_names)
    for_boxes = '  <RectangleLabels name="box" toName="image">\n' + labels + "\n  </RectangleLabels>\n"
    write_atomic(
        job.out / "label_studio.xml",
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <PolygonLabels name="label" toName="image" strokeWidth="2">\n{labels}\n  </PolygonLabels>\n'
        f"{for_boxes}</View>\n",
    )


def _region(number: int, o: LabelledObject, size: tuple[int, int], job: Job) -> dict[str, Any]:
    height, width = size
    ring, name = o.ring(job.tolerance), job.name_of(o.label)
    region: dict[str, Any] = {
        "id": f"object-{number}",
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "points": [[100 * x / width, 100 * y / height] for x, y in zip(ring[::2], ring[1::2])],
            "closed": True,
            "polygonlabels": [name],
        },
    }
    if not ring:
        x0, y0, x1, y1 = o.box
        place = {"x": x0 / width, "y": y0 / height, "width": (x1 - x0) / width, "height": (y1 - y0) / height}
        value = {**{k: 100 * v for k, v in place.items()}, "rotation": 0, "rectanglelabels": [name]}
        region |= {"type": "rectanglelabels", "from_name": "box", "value": value}
    if o.score is not None:
        region["score"] = o.score
    return region
