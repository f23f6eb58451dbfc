"""Prediction over many images: from paths to `predictions.json` and pictures, in memory that does not grow.

Three stages run side by side: threads read and resize images ahead, the model takes them in batches, threads
encode masks and draw. Each holds a bounded number of images.
"""

from __future__ import annotations

import glob
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from maskrcnn.data.source import is_junk, other_pictures
from maskrcnn.errors import UserError, described, did_you_mean, one_line
from maskrcnn.evaluation.inference import predict_stream
from maskrcnn.files import atomic_path
from maskrcnn.images.checks import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from maskrcnn.structures import Instances

PREDICTIONS = "predictions.json"
__all__ = [
    "PREDICTIONS",
    "Written",
    "check_outputs",
    "find_images",
    "not_read",
    "predict_stream",
    "write_predictions",
    "write_results",
]


def find_images(inputs: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the image files that `inputs` name: files, folders and patterns with `*`, each file once, in this order.

    Of a folder, the files in it that end in one of IMAGE_SUFFIXES, by name; not those of its subfolders
    (`folder/**/*.jpg` finds them). Of a pattern, likewise. A file named by itself may end in anything.

    Raises:
        UserError: a file that does not exist, a folder or pattern without an image.
    """
    if isinstance(inputs, str | Path) or not isinstance(inputs, Iterable):
        inputs = [inputs]
    found: dict[Path, Path] = {}
    for given in inputs:
        if not isinstance(given, str | Path):
            raise UserError(f"predict: expected paths, got {described(given)}.")
        for path in _matches(str(given)):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def not_read(inputs: Iterable[str | Path]) -> list[str]:
    """A line for each folder among `inputs` that holds pictures in formats that are not read."""
    lines = []
    for folder in (Path(given) for given in inputs if Path(given).is_dir()):
        if others := [p for p in other_pictures(folder) if p.suffix.lower() not in IMAGE_SUFFIXES]:
            endings = ", ".join(sorted({p.suffix for p in others}))
            lines.append(f"{folder}: {len(others)} others not read ({endings}): convert them to JPEG or PNG")
    return lines


def check_outputs(images: Sequence[Path], out_dir: str | Path, *, draw: bool = True) -> None:
    """Make sure that every image has an id and a picture of its own, and that no picture replaces an image.

    Raises:
        UserError: two images of one stem (it is the `image_id`), or an image where its picture would go.
    """
    stems: dict[str, Path] = {}
    for path in images:
        if other := stems.get(path.stem):
            raise UserError(
                f"{path}: expected file names that differ without their endings, got {other} too: both would be "
                f"{path.stem!r} in {PREDICTIONS}. Rename one, or predict them into different folders."
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


def write_predictions(
    results: Iterable[tuple[str | Path, Instances | UserError]],
    out_dir: str | Path,
    *,
    category_ids: Sequence[int] = (),
    draw: bool = True,
    draw_threshold: float = 0.5,
    num_threads: int = 2,
) -> Written:
    """Write `out_dir/predictions.json`, COCO results of all images, and a picture `out_dir/<stem>.jpg` of each.

    Results go to the disk as they come; `predictions.json` appears when the last is written, and not at all if
    something raises. Files with an error are left out; a picture that cannot be drawn is told in the result and
    costs nothing else. `category_ids` maps labels to a data set's ids.
    Pictures show detections with at least `draw_threshold`; `num_threads` of them are drawn at a time.

    Raises:
        UserError: the output cannot be written.
    """
    out_dir = Path(out_dir)
    written = Written(out_dir / PREDICTIONS)

    def finish(path: Path, instances: Instances) -> list[str]:
        if draw:
            try:
                instances.draw(out_dir / f"{path.stem}.jpg", score_threshold=draw_threshold)
            except Exception as e:  # whatever it is, what was found is worth more than its picture
                reason = str(e) if isinstance(e, UserError) else f"{path}: {type(e).__name__}: {e}"
                written.not_drawn.append(one_line(reason))
        return [json.dumps(entry) for entry in instances.to_coco(path.stem, category_ids)]

    with atomic_path(written.path) as temporary, open(temporary, "w") as file:
        array = _JsonArray(file)
        for result in _in_threads(results, finish, num_threads):
            if isinstance(result, UserError):
                written.num_failed += 1
                continue
            array.extend(result)
            written.num_images += 1
        array.close()
        written.num_detections = array.length
    return written


def write_results(
    results: Iterable[tuple[Path, list[dict[str, Any]] | UserError]], out_dir: str | Path
) -> Written:
    """Write `out_dir/predictions.json` from COCO results a picture; files with an error are counted and left out.

    Raises:
        UserError: the output cannot be written.
    """
    written = Written(Path(out_dir) / PREDICTIONS)
    with atomic_path(written.path) as temporary, open(temporary, "w") as file:
        array = _JsonArray(file)
        for _, result in results:
            if isinstance(result, UserError):
                written.num_failed += 1
                continue
            array.extend(json.dumps(entry) for entry in result)
            written.num_images += 1
        array.close()
        written.num_detections = array.length
    return written


@dataclass(slots=True)
class Written:
    """Counts and errors of a call of `write_predictions`."""

    path: Path  # of predictions.json
    num_images: int = 0
    num_failed: int = 0
    num_detections: int = 0
    not_drawn: list[str] = field(default_factory=list)  # pictures that could not be, a line each


class _JsonArray:
    """Writer of a JSON array item by item, one a line."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.length = file, 0
        file.write("[")

    def extend(self, items: Iterable[str]) -> None:
        for item in items:
            self.file.write(",\n" if self.length else "\n")
            self.file.write(item)
            self.length += 1

    def close(self) -> None:
        self.file.write("\n]\n")


def _in_threads(
    results: Iterable[tuple[str | Path, Instances | UserError]],
    finish: Callable[[Path, Instances], list[str]],
    num_threads: int,
) -> Iterator[list[str] | UserError]:
    """`finish` each result in worker threads; in order, at most two a thread are under way."""
    num_threads = max(1, num_threads)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="maskrcnn-write")
    pending: deque[Future[list[str]] | UserError] = deque()

    def oldest() -> list[str] | UserError:
        result = pending.popleft()
        return result if isinstance(result, UserError) else result.result()

    try:
        for path, result in results:
            pending.append(
                result if isinstance(result, UserError) else pool.submit(finish, Path(path), result)
            )
            if len(pending) >= 2 * num_threads:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _matches(given: str) -> list[Path]:
    path = Path(given)
    endings = " ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        images = _images_among(path.iterdir())
        if not images:
            deeper = (
                f" (or '{path}/**/*' for its subfolders)" if any(p.is_dir() for p in path.iterdir()) else ""
            )
            raise UserError(
                f"{given}: expected images ({endings}), got a folder without any. Name another{deeper}."
            )
        return images
    if path.exists():
        return [path]
    if glob.has_magic(given):
        images = _images_among(Path(p) for p in glob.iglob(given, recursive=True))
        if not images:
            raise UserError(
                f"{given}: expected a pattern that matches images ({endings}), got no match. Check it."
            )
        return images
    nearby = path.parent if path.parent.is_dir() else None
    near = did_you_mean(path.name, (p.name for p in nearby.iterdir()), show_all_up_to=0) if nearby else ""
    problem = "no such file" if nearby else f"no folder {path.parent}"
    raise UserError(f"{given}: expected an image, a folder or a pattern, got {problem}. {near}".rstrip())


def _images_among(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not is_junk(p.name) and p.is_file()
    )
