"""CVAT: its XML "CVAT for images 1.1", annotations_PART.xml, to be uploaded to a task with the pictures of PART/.

Parts of one object have one group_id. A score is an attribute, which CVAT keeps where the task's labels have one of
that name. Crowds are left out.
Format: CVAT's manual, "XML annotation format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from xml.sax.saxutils import escape, quoteattr

from maskrcnn.data.writers.labelled import Job, LabelledPicture
from maskrcnn.files import atomic_path

PICTURES = "{part}"


def encode(picture: LabelledPicture, job: Job) -> str:
    """Write a picture's objects as XML (`Writer.encode`)."""
    lines = []
    for number, o in enumerate((o for o in picture.objects if not o.crowd), start=1):
        common = f'label={quoteattr(job.name_of(o.label))} source="auto" occluded="0" z_order="0"'
        score = "" if o.score is None else f'<attribute name="score">{o.score:.4f}</attribute>'
        if o.segmentation is None:
            x0, y0, x1, y1 = o.box
            place = f'xtl="{x0:.2f}" ytl="{y0:.2f}" xbr="{x1:.2f}" ybr="{y1:.2f}"'
            lines.append(f"    <box {common} {place}>{score}</box>\n")
            continue
        rings = o.rings(job.tolerance)
        group = f' group_id="{number}"' if len(rings) > 1 else ""
        for ring in rings:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(ring[::2], ring[1::2]))
            lines.append(f'    <polygon {common}{group} points="{points}">{score}</polygon>\n')
    return "".join(lines)


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, str], None]]:
    """Open a part's XML (`Writer.writing`)."""
    name = f"annotations_{job.part}.xml" if job.part else "annotations.xml"
    number = 0
    with atomic_path(job.out / name) as temporary, open(temporary, "w", encoding="utf-8") as file:

        def add(picture: LabelledPicture, objects: str) -> None:
            nonlocal number
            height, width = picture.size
            size = f'width="{width}" height="{height}"'
            file.write(f'  <image id="{number}" name={quoteattr(picture.name)} {size}>\n')
            file.write(objects + "  </image>\n")
            number += 1

        attribute = (
            "<attributes><attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute></attributes>"
        )
        labels = [
            f"      <label><name>{escape(name)}</name>{attribute}</label>\n" for name in job.class_names
        ]
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        file.write("  <meta><task><labels>\n" + "".join(labels) + "    </labels></task></meta>\n")
        yield add
        file.write("</annotations>\n")


def finish(job: Job, parts: Sequence[str]) -> None:
    """Do nothing: each XML has the classes (`Writer.finish`)."""
