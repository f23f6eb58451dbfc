"""GeoJSON: NAME.geojson for each picture, polygons where they lie on the earth (`predict.geo`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from maskrcnn.data.writers import Job, LabelledPicture
from maskrcnn.files import write_atomic
from maskrcnn.predict.geo import geojson, place_of

PICTURES = ""


def encode(picture: LabelledPicture, job: Job) -> str:
    """Write a picture's detections as GeoJSON (`Writer.encode`).

    Raises:
        UserError: the picture's places cannot be read, or not be told in the CRS that is asked for.
    """
    if picture.error is not None:
        return ""
    return geojson(
        place_of(picture.path),
        picture.size,
        picture.objects,
        job.class_names,
        crs=job.crs,
        tolerance=job.tolerance,
    )


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, str], None]]:
    """Write a file for each picture (`Writer.writing`)."""
    yield lambda picture, text: write_atomic(job.out / f"{picture.path.stem}.geojson", text)


def finish(job: Job, parts: Sequence[str]) -> None:
    """Do nothing (`Writer.finish`)."""
