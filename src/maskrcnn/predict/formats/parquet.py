"""Parquet: predictions.parquet/, one row a picture, also of an empty or a failed one, in parts that are whole.

Columns: image (its path), image_id (its stem), height, width, error (null, or the sentence), and lists of the
detections, best first: boxes (x0, y0, x1, y1), scores, labels (the class index from 0), categories (its name), tracks
(the numbers of a film's objects, else null), rle_counts (COCO's compressed counts at the picture's size; null without
masks). `pyarrow.dataset`, pandas, Spark and DuckDB read the folder as one table.

A part has up to `ROWS` pictures and is written at least once in `SECONDS`, so that what is killed loses no more. Each
names the settings that it was made with: a run that is started again skips what it finds (`done`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskrcnn.data.writers import Job, LabelledPicture
from maskrcnn.errors import UserError, one_line
from maskrcnn.files import atomic_path

FOLDER = "predictions.parquet"
PICTURES = ""
ROWS, SECONDS = 512, 60.0
_SETTINGS = b"maskrcnn"


def encode(picture: LabelledPicture, job: Job) -> dict[str, Any]:
    """Make a picture's row (`Writer.encode`)."""
    objects = picture.objects
    masks = [o.segmentation["counts"] for o in objects if isinstance(o.segmentation, dict)]
    failed = picture.error is not None
    return {
        "image": str(picture.path),
        "image_id": picture.image_id,
        "height": None if failed else picture.size[0],
        "width": None if failed else picture.size[1],
        "error": picture.error,
        "boxes": None if failed else [list(o.box) for o in objects],
        "scores": None if failed else [o.score for o in objects],
        "labels": None if failed else [o.label for o in objects],
        "tracks": None if failed else [o.track for o in objects],
        "categories": None if failed else [job.name_of(o.label) for o in objects],
        "rle_counts": masks if len(masks) == len(objects) and not failed else None,
    }


@contextmanager
def writing(job: Job) -> Iterator[Callable[[LabelledPicture, dict[str, Any]], None]]:
    """Write parts beside those that are there; what came before a failure is written too (`Writer.writing`)."""
    folder = job.out / FOLDER
    # Parts of other shares may be written beside these.
    stem = f"part-{job.shard[0]}-of-{job.shard[1]}" if job.shard else "part"
    number = len(list(folder.glob(f"{stem}-[0-9][0-9][0-9][0-9][0-9].parquet")))
    rows: list[dict[str, Any]] = []
    written = time.monotonic()

    def flush() -> None:
        nonlocal number, written
        if rows:
            write_part(job, f"{stem}-{number:05d}.parquet", rows)
            number += 1
            rows.clear()
        written = time.monotonic()

    def add(_: LabelledPicture, row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) >= ROWS or time.monotonic() - written > SECONDS:
            flush()

    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield add
    finally:
        flush()


def write_part(job: Job, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows as a part of that name, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    pyarrow, parquet = _packages()
    schema = table_schema().with_metadata({_SETTINGS: job.settings})
    with atomic_path(job.out / FOLDER / name) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary, compression="zstd")


def finish(job: Job, parts: Sequence[str]) -> None:
    """Do nothing (`Writer.finish`)."""


def done(out: Path, settings: str) -> set[str]:
    """Paths of the pictures that the parts in a folder have, also of those that failed: a picture has one row.

    Raises:
        UserError: a part that cannot be read, or was written with other settings.
    """
    _, parquet = _packages()
    found: set[str] = set()
    # What a killed run was about to write has a dot before its name, and no reader of the table sees it.
    for path in sorted((out / FOLDER).glob("[!.]*.parquet")):
        try:
            table = parquet.read_table(path, columns=["image"])
        except Exception as e:  # pyarrow raises many kinds
            raise UserError(
                f"{path}: cannot read: {one_line(str(e))}. Remove it to do its pictures again."
            ) from None
        if (table.schema.metadata or {}).get(_SETTINGS, b"").decode() != settings:
            raise UserError(
                f"{path.parent}: was written by another version or with other settings. Choose another folder."
            )
        found.update(table.column("image").to_pylist())
    return found


def table_schema() -> Any:
    """Schema of the table, of type `pyarrow.Schema`."""
    pyarrow, _ = _packages()
    text, number = pyarrow.string(), pyarrow.int64()
    lists = {
        "boxes": pyarrow.list_(pyarrow.float64(), 4),
        "scores": pyarrow.float64(),
        "labels": number,
        "tracks": number,
        "categories": text,
        "rle_counts": text,
    }
    return pyarrow.schema(
        [("image", text), ("image_id", text), ("height", number), ("width", number), ("error", text)]
        + [(name, pyarrow.list_(kind)) for name, kind in lists.items()]
    )


def _packages() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "--format parquet: expected the package pyarrow, got none. Run: pip install 'maskrcnn[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet
