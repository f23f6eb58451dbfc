"""Label formats to write: one file each, all with one interface, `Writer`.

| format | what is written below OUT | what it cannot hold |
|---|---|---|
| coco | PART/ with the pictures, annotations/instances_PART.json | |
| yolo | images/PART/, labels/PART/ with a text file a picture, data.yaml | crowds, scores |
| labelme | PART/ with a JSON beside each picture, labels.txt | crowds |
| voc | JPEGImages/, SegmentationObject/, SegmentationClass/, ImageSets/ | crowds, scores, overlaps |
| cvat | PART/, annotations_PART.xml ("CVAT for images 1.1") | crowds |
| label-studio | PART/, label_studio_PART.json, label_studio.xml | crowds |

Masks are written exactly: polygons run along the pixels' edges, with slits to holes and between parts, and what a
reader fills is the mask. With a `tolerance` they have fewer corners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from maskrcnn.data.writers import coco, cvat, label_studio, labelme, voc, yolo
from maskrcnn.data.writers.labelled import Job, LabelledObject, LabelledPicture

__all__ = ["WRITERS", "Job", "LabelledObject", "LabelledPicture", "Writer"]

Add = Callable[[LabelledPicture, Any], None]


class Writer(Protocol):
    """Interface of the module of a format.

    PICTURES: the folder of a part's pictures below OUT, with {part}.
    encode: the labels of a picture, ready to be written; in any thread.
    writing: open what a part is written to. Its value takes pictures with their labels, in the order of the file;
        what is written is there as a whole when the block ends well.
    finish: write what is said once of all parts, as the classes.
    """

    @property
    def PICTURES(self) -> str: ...

    def encode(self, picture: LabelledPicture, job: Job) -> Any: ...
    def writing(self, job: Job) -> AbstractContextManager[Add]: ...
    def finish(self, job: Job, parts: Sequence[str]) -> None: ...


WRITERS: dict[str, Writer] = {
    "coco": coco,
    "yolo": yolo,
    "labelme": labelme,
    "voc": voc,
    "cvat": cvat,
    "label-studio": label_studio,
}
