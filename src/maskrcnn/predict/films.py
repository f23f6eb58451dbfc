"""Films and cameras: frames in, a film with the objects drawn and rows a frame out, in memory that does not grow.

PyAV reads and writes them (extra `video`): its packages bring FFmpeg with them, which torchcodec looks for on the
system.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from maskrcnn.data.writers import Job
from maskrcnn.errors import UserError, one_line
from maskrcnn.files import atomic_path
from maskrcnn.predict.formats import FORMATS
from maskrcnn.predict.tracks import Tracker
from maskrcnn.predict.write import labelled
from maskrcnn.structures import Instances
from maskrcnn.visualize import draw

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv")
_ADDRESSES = ("rtsp://", "rtmp://", "udp://", "tcp://", "srt://", "http://", "https://")
_LIVE_RATE = 15  # frames a second of a film drawn of a camera that tells no rate
_BROKEN_IN_A_ROW = 250  # packets after which a film is taken for ended


class Model(Protocol):
    """Model, or anything else that finds the objects of a frame."""

    def predict(self, images: Any, /) -> Instances: ...


@dataclass(slots=True)
class FilmResult:
    """Counts of a film: frames that were looked at, what was found, tracks, and what could not be read, a line each."""

    frames: int = 0
    detections: int = 0
    tracks: int = 0
    broken: list[str] = field(default_factory=list)
    interrupted: bool = False
    film: Path | None = None


def is_film(given: str) -> bool:
    """Recognize a film's file, a stream's address, or a camera's number."""
    camera = given.isdigit() and not Path(given).exists()
    return camera or given.startswith(_ADDRESSES) or Path(given).suffix.lower() in SUFFIXES


def is_live(given: str) -> bool:
    """Recognize what has no end: a camera, or a stream."""
    return given.isdigit() or given.startswith(_ADDRESSES)


def name_of(given: str) -> str:
    """Name of a film in the results: its file's without the ending, `camera-0`, or the last part of an address."""
    if given.isdigit():
        return f"camera-{given}"
    return PurePosixPath(given.split("?")[0].rstrip("/")).stem or "stream"


def predict_film(
    model: Model,
    source: str,
    out: Path,
    *,
    formats: Sequence[str] = ("coco",),
    class_names: Sequence[str] = (),
    category_ids: Sequence[int] = (),
    every: int = 1,
    track: bool = False,
    draw_film: bool = True,
    draw_threshold: float = 0.5,
    max_frames: int | None = None,
    settings: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> FilmResult:
    """Find the objects of every `every`-th frame and write `out/NAME.mp4` (H.264) with them drawn, and rows.

    Rows are COCO's results, or Parquet's, with `image_id` NAME/NUMBER, the frame's number from 0 in the film; with
    `track` each has a `track_id`, one number an object. A frame that cannot be decoded is told in the result and left
    out. Ctrl-C ends the film: what was found until then is written as it would be at the film's end.

    progress: called with the number of frames read, and of all, 0 where that is not known.

    Raises:
        UserError: PyAV is missing, the source cannot be opened or has no frames, or the output cannot be written.
    """
    name = name_of(source)
    job = Job(out, tuple(class_names), tuple(category_ids), settings=settings)
    result, tracker = FilmResult(), Tracker()
    with _opened(source) as (container, stream), contextlib.ExitStack() as outputs:
        adds = [(FORMATS[f], outputs.enter_context(FORMATS[f].writing(job))) for f in formats]
        film: _Film | None = None
        try:
            for number, pixels in _frames(container, stream, result.broken, source):
                if progress:
                    progress(number + 1, stream.frames)
                if number % every:
                    continue
                found = model.predict(pixels).to("cpu")
                numbers = tracker.update(found) if track else [None] * len(found)
                picture = labelled(Path(name, f"{number:06d}"), found)
                picture.image_id = f"{name}/{number:06d}"
                for o, its in zip(picture.objects, numbers, strict=True):
                    o.track = its
                for writer, add in adds:
                    add(picture, writer.encode(picture, job))
                if draw_film:
                    drawn = _drawn(pixels, found, numbers, draw_threshold)
                    if film is None:
                        film = outputs.enter_context(
                            _film(out / f"{name}.mp4", drawn.shape, _rate(stream, every))
                        )
                        result.film = out / f"{name}.mp4"
                    film.add(drawn)
                result.frames += 1
                result.detections += len(found)
                result.tracks = max([result.tracks, *(n for n in numbers if n is not None)])
                if max_frames and result.frames >= max_frames:
                    break
        except KeyboardInterrupt:
            result.interrupted = True
        if not result.frames and not result.interrupted:
            why = f": {result.broken[0]}" if result.broken else ""
            raise UserError(f"{source}: expected a film with frames, got none{why}.")
    for f in formats:
        FORMATS[f].finish(job, ())
    return result


@contextlib.contextmanager
def _opened(source: str) -> Iterator[tuple[Any, Any]]:
    """Open a film, and find its pictures."""
    av = _av()
    where, how = source, {}
    if source.isdigit():  # Linux's cameras
        where, how = f"/dev/video{source}", {"format": "v4l2"}
    try:
        container = av.open(where, **how)
    except Exception as e:  # of kinds of its own
        raise UserError(f"{source}: cannot open the film: {one_line(_reason(e))}.") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{source}: expected a film, got a file without pictures.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _frames(container: Any, stream: Any, broken: list[str], source: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames, numbered from 0, as (H, W, 3) uint8 RGB, upright; note in `broken` what cannot be decoded.

    Frames that are lost without an error show as a gap in the times of a film whose frames follow each other evenly;
    they are counted.
    """
    av = _av()
    number = in_a_row = 0
    clock = _Clock()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError as e:
            broken.append(f"{source}: frame {number}: {one_line(_reason(e))}")
            number, in_a_row = number + 1, in_a_row + 1
            if in_a_row > _BROKEN_IN_A_ROW:
                return
            continue
        for frame in frames:
            in_a_row = 0
            if lost := clock.lost(frame.pts):
                broken.append(f"{source}: frame {number}: it and {lost - 1} more are missing")
                number += lost
            pixels = frame.to_ndarray(format="rgb24")
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            yield number, np.ascontiguousarray(np.rot90(pixels, turns))
            number += 1


class _Clock:
    """Times of the frames, in a film's own units."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.step = self.steady = 0  # the last step, and how often it was the same

    def lost(self, time: int | None) -> int:
        """Count the frames that are missing before the one at `time`."""
        if time is None or self.last is None:
            self.last = time
            return 0
        step = time - self.last
        self.last = time
        if self.steady >= 3 and step > self.step > 0 and step % self.step == 0:
            return step // self.step - 1
        self.steady = self.steady + 1 if step == self.step else 0
        self.step = step
        return 0


class _Film:
    """Film that is being written, all frames of one size."""

    def __init__(self, container: Any, stream: Any, size: tuple[int, int]) -> None:
        self.container, self.stream, self.size = container, stream, size

    def add(self, pixels: np.ndarray) -> None:
        high, wide = self.size
        canvas = np.zeros((high, wide, 3), np.uint8)  # H.264 has even sides, and a film one size
        part = pixels[:high, :wide]
        canvas[: part.shape[0], : part.shape[1]] = part
        self.container.mux(self.stream.encode(_av().VideoFrame.from_ndarray(canvas, format="rgb24")))


@contextlib.contextmanager
def _film(path: Path, shape: Sequence[int], rate: Fraction) -> Iterator[_Film]:
    """Open a film to write, which is there as a whole when the block ends well."""
    av = _av()
    size = (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2)
    with atomic_path(path) as temporary:
        container = av.open(str(temporary), "w", format="mp4")
        try:
            stream = container.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"crf": "20", "preset": "veryfast"}
            yield _Film(container, stream, size)
            container.mux(stream.encode(None))
        finally:
            container.close()


def _rate(stream: Any, every: int) -> Fraction:
    """Frames a second of the film that is written, so that it lasts as long as the one that is read."""
    rate = stream.average_rate or stream.guessed_rate or _LIVE_RATE
    return Fraction(rate).limit_denominator(1001 * 1000) / every


def _drawn(
    pixels: np.ndarray, found: Instances, numbers: Sequence[int | None], threshold: float
) -> np.ndarray:
    """Draw the detections from `threshold` on, or those with a number, in the frame's own size."""
    kept = [
        i for i, score in enumerate(found.scores.tolist()) if score >= threshold or (numbers[i] is not None)
    ]
    if not any(n is not None for n in numbers):
        small = replace(found[kept], image=pixels)
        return _of_size(small.draw(score_threshold=0.0), pixels)
    names, masks = found.class_names, found.masks
    labels = found.labels.tolist()
    texts = [
        f"{names[labels[i]] if labels[i] < len(names) else labels[i]} {numbers[i] or ''}".strip()
        for i in kept
    ]
    shown = draw(
        pixels,
        boxes=found.boxes.numpy()[kept],
        labels=[labels[i] for i in kept],
        texts=texts,
        mask_of=None if masks is None else lambda k: masks.crop(kept[k]),
        colours=np.array([_colour(numbers[i] or 0) for i in kept], np.uint8).reshape(-1, 3),
    )
    return _of_size(shown, pixels)


def _of_size(drawn: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The drawing as large as the frame where it was drawn enlarged."""
    if drawn.shape == pixels.shape:
        return drawn
    from PIL import Image

    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.LANCZOS))


def _colour(number: int) -> tuple[int, int, int]:
    """Colour of a track: hues that follow each other by the golden angle."""
    import colorsys

    r, g, b = colorsys.hsv_to_rgb(number * (math.sqrt(5) - 1) / 2 % 1, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError(
            "predict: films: expected the package av, got none. Run: pip install 'maskrcnn[video]'"
        ) from None
    messages = import_module("av.logging")  # what they say of broken frames is told here
    messages.set_level(messages.PANIC)
    return av
