"""Pictures to predict: files, folders and patterns, all of them or one machine's share."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from maskrcnn.data.source import is_junk, other_pictures
from maskrcnn.errors import UserError, described, did_you_mean
from maskrcnn.images.checks import IMAGE_SUFFIXES
from maskrcnn.tiles.windows import is_zarr


def find_images(inputs: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the image files that `inputs` name: files, folders and patterns with `*`, each file once, in this order.

    Of a folder, the files in it that end in one of IMAGE_SUFFIXES, by name, or without any those that end in .npy; not
    those of its subfolders (`folder/**/*.jpg` finds them). Of a pattern, likewise. A file named by itself may end in
    anything. A folder that is Zarr is a picture.

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


def read_shard(text: str) -> tuple[int, int]:
    """Read a share of the pictures, "I/N" for the I-th of N, I from 1 on.

    Raises:
        UserError: anything else.
    """
    first, slash, last = text.partition("/")
    if slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise UserError(f"--shard: expected I/N with I from 1 to N, as 2/8, got {text!r}.")


def sharded(images: Sequence[Path], shard: tuple[int, int]) -> list[Path]:
    """Choose the I-th of N shares of the pictures, in their order.

    A picture's share depends on its path as it is written alone, so that machines agree without talking to each
    other, also where one of them sees a file more. Shares are equal on average only: mind short lists.
    """
    number, count = shard

    def share(path: Path) -> int:
        digest = hashlib.sha256(path.as_posix().encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % count

    return [path for path in images if share(path) == number - 1]


def _matches(given: str) -> list[Path]:
    path = Path(given)
    endings = " ".join(IMAGE_SUFFIXES)
    if is_zarr(path):
        return [path]
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
    files = sorted(p for p in paths if not is_junk(p.name) and p.is_file())
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    return images or [p for p in files if p.suffix.lower() == ".npy"]  # bands
