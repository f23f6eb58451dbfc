"""Writing of what was found in many pictures, in several formats, with drawings, in memory that does not grow.

Threads encode and draw ahead of the files, which get the pictures in their order; a bounded number is under way.
"""

from __future__ import annotations

import contextlib
import csv
import io
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, overload

import numpy as np

from maskrcnn.data.writers import Job, LabelledObject, LabelledPicture
from maskrcnn.errors import UserError, one_line
from maskrcnn.files import write_atomic
from maskrcnn.predict.formats import FORMATS
from maskrcnn.predict.formats.results import PREDICTIONS
from maskrcnn.structures import Instances
from maskrcnn.tiles.tiled import TiledInstances

ORDER = "uncertainty.csv"
_TAKE_FAILED = ("parquet",)  # formats with a line for what could not be read
Found = Instances | TiledInstances
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(slots=True)
class Written:
    """Counts and errors of a call of `write_predictions`."""

    path: Path  # of predictions.json, or of the folder where that is not asked for
    num_images: int = 0
    num_failed: int = 0
    num_detections: int = 0
    not_drawn: list[str] = field(default_factory=list)  # pictures that could not be, a line each


def changed(model: str, weights: str | None = None) -> list[int]:
    """Times at which the files of a model were last written, of those that are files and no names: results of others
    are not to be mixed with its own.
    """
    files = (Path(model), Path(model, "model.safetensors"), Path(weights or model))
    return [file.stat().st_mtime_ns for file in files if file.is_file()]


def write_predictions(
    results: Iterable[tuple[str | Path, Found | UserError]],
    out_dir: str | Path,
    *,
    formats: Sequence[str] = ("coco",),
    class_names: Sequence[str] = (),
    category_ids: Sequence[int] = (),
    tolerance: float = 0.0,
    draw: bool = True,
    draw_threshold: float = 0.5,
    by_uncertainty: bool = False,
    shard: tuple[int, int] | None = None,
    settings: str = "",
    crs: Literal["", "raster", "wgs84"] = "",
    num_threads: int = 2,
) -> Written:
    """Write what was found: in each of `formats` (`FORMATS` says where), and a picture `out_dir/<stem>.jpg` of each.

    Results go to the disk as they come; a file of all pictures appears when the last is written, and not at all if
    something raises. Files with an error are left out, except of Parquet; a picture that cannot be drawn is told in the
    result and costs nothing else.

    category_ids: maps labels to a data set's ids; tolerance: pixels that a polygon's edge may lie beside the mask's;
    draw_threshold: least score in pictures, of which `num_threads` are drawn at a time;
    by_uncertainty: write the pictures in the order of what they would teach (`uncertainty`), and `ORDER` with it;
    shard, settings: named by the parts of Parquet;
    crs: of GeoJSON: see `predict.geo.geojson`.

    Raises:
        UserError: the output cannot be written, or a format lacks its package.
    """
    out_dir = Path(out_dir)
    job = Job(
        out_dir,
        tuple(class_names),
        tuple(category_ids),
        tolerance=tolerance,
        shard=shard,
        settings=settings,
        crs=crs,
    )
    written = Written(out_dir / PREDICTIONS if "coco" in formats else out_dir)

    def finish(path: Path, found: Found | UserError) -> LabelledPicture:
        if draw and isinstance(found, Instances):
            try:
                found.draw(out_dir / f"{path.stem}.jpg", score_threshold=draw_threshold)
            except Exception as e:  # whatever it is, what was found is worth more than its picture
                reason = str(e) if isinstance(e, UserError) else f"{path}: {type(e).__name__}: {e}"
                written.not_drawn.append(one_line(reason))
        return labelled(path, found)

    def encode(picture: LabelledPicture) -> tuple[LabelledPicture, list[Any]]:
        return picture, [FORMATS[name].encode(picture, job) for name in formats]

    with contextlib.ExitStack() as stack:
        adds = [stack.enter_context(FORMATS[name].writing(job)) for name in formats]
        if by_uncertainty:
            pictures = stack.enter_context(
                _by_uncertainty(_in_threads(results, finish, num_threads), out_dir)
            )
            ready = _in_threads(((p.path, p) for p in pictures), lambda _, p: encode(p), num_threads)
        else:
            ready = _in_threads(results, lambda path, found: encode(finish(path, found)), num_threads)
        for picture, encoded in ready:
            failed = picture.error is not None
            for name, add, content in zip(formats, adds, encoded, strict=True):
                if not failed or name in _TAKE_FAILED:
                    add(picture, content)
            written.num_failed += failed
            written.num_images += not failed
            written.num_detections += len(picture.objects)
        for name in formats:
            FORMATS[name].finish(job, ())
    return written


def check_outputs(
    images: Sequence[Path], out_dir: str | Path, *, formats: Sequence[str] = ("coco",), draw: bool = True
) -> None:
    """Make sure that every image has an id and a picture of its own, and that no picture replaces an image.

    Parquet's rows go by the images' paths: where nothing else is written, stems may be the same.

    Raises:
        UserError: two images of one stem (it is the `image_id`), or an image where its picture would go.
    """
    if not draw and all(name in _TAKE_FAILED for name in formats):
        return
    stems: dict[str, Path] = {}
    for path in images:
        if other := stems.get(path.stem):
            raise UserError(
                f"{path}: expected file names that differ without their endings, got {other} too: both would be "
                f"{path.stem!r} in the results. Rename one, or predict them into different folders."
            )
        stems[path.stem] = path
    if draw:
        sources = {path.resolve() for path in images}
        for path in images:
            picture = Path(out_dir, f"{path.stem}.jpg")
            if picture.resolve() in sources:
                raise UserError(
                    f"{picture}: the picture drawn would replace an input. Choose another folder to write in."
                )


def labelled(path: Path, found: Found | UserError) -> LabelledPicture:
    """A picture's detections, or why there are none, as writers take them."""
    if isinstance(found, UserError):
        return LabelledPicture(path, path.name, (0, 0), [], str(found))
    objects = TiledObjects(found) if isinstance(found, TiledInstances) else _objects(found)
    return LabelledPicture(path, path.name, found.image_size, objects)


def _objects(found: Instances) -> list[LabelledObject]:
    boxes, scores = found.boxes.double().tolist(), found.scores.double().tolist()
    masks = None if found.masks is None else found.masks.to_rle()
    points = None
    if found.keypoints is not None:
        # COCO's points are pixels' numbers: half a pixel less than places in the picture.
        shifted = found.keypoints.double().cpu().numpy() - np.array([0.5, 0.5, 0])
        points = shifted.reshape(len(boxes), -1).tolist()
    return [
        LabelledObject(
            label,
            (box[0], box[1], box[2], box[3]),
            None if masks is None else masks[k],
            score,
            keypoints=None if points is None else points[k],
        )
        for k, (box, score, label) in enumerate(zip(boxes, scores, found.labels.tolist(), strict=True))
    ]


@dataclass(slots=True, eq=False)
class TiledObjects(Sequence[LabelledObject]):
    """Objects of a large picture, each made when it is asked for: there may be hundreds of thousands."""

    found: TiledInstances

    def __len__(self) -> int:
        return len(self.found)

    @overload
    def __getitem__(self, i: int) -> LabelledObject: ...
    @overload
    def __getitem__(self, i: slice) -> list[LabelledObject]: ...
    def __getitem__(self, i: int | slice) -> LabelledObject | list[LabelledObject]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        x0, y0, x1, y1 = self.found.boxes[i].tolist()
        score, label = self.found.scores[i].item(), self.found.labels[i].item()
        return LabelledObject(label, (x0, y0, x1, y1), self.found.rle(i), score)


def uncertainty(picture: LabelledPicture) -> float:
    """Value of a person's corrections of a picture for the model: the sum over its detections of 1 - |2 score - 1|.

    A detection that the model is sure of, or sure to be nothing, counts 0; one with a score of a half counts 1. So it
    is about the number of detections that are as likely wrong as right.
    """
    return sum(1 - abs(2 * o.score - 1) for o in picture.objects if o.score is not None)


@contextlib.contextmanager
def _by_uncertainty(pictures: Iterable[LabelledPicture], out: Path) -> Iterator[Iterator[LabelledPicture]]:
    """Pictures in the order of their uncertainty, the highest first; kept on the disk until all are there."""
    with tempfile.TemporaryFile() as spool:
        places: list[tuple[float, int, str, int]] = []
        for picture in pictures:
            places.append((-uncertainty(picture), spool.tell(), str(picture.path), len(picture.objects)))
            pickle.dump(picture, spool)
        places.sort()
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["image", "uncertainty", "detections"])
        rows.writerows([path, f"{-value:.4f}", count] for value, _, path, count in places)
        write_atomic(out / ORDER, table.getvalue())
        yield (_at(spool, place) for _, place, _, _ in places)


def _at(spool: IO[bytes], place: int) -> LabelledPicture:
    spool.seek(place)
    return pickle.load(spool)


def _in_threads(
    items: Iterable[tuple[str | Path, Given]], work: Callable[[Path, Given], Made], num_threads: int
) -> Iterator[Made]:
    """`work` on each item in worker threads; in order, at most two a thread are under way."""
    num_threads = max(1, num_threads)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="maskrcnn-write")
    pending: deque[Future[Made]] = deque()
    try:
        for path, item in items:
            pending.append(pool.submit(work, Path(path), item))
            if len(pending) >= 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
