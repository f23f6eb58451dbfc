"""Pictures of a data set that can be decoded whole: found out once, then known by size and time of change.

A header says nothing about the rest of a file, so each picture is decoded. For a large set that takes minutes, with
a bar on standard error; what was found sound is kept in the user's cache (`shared_arrays`), also if it is interrupted.
Of several processes that ask at once one does the work and the others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.data.coco import CocoData
from maskrcnn.data.shared_arrays import cache_name, keep, kept, locked
from maskrcnn.errors import UserError

VERSION = 1  # of what a picture has to stand
_MOST_KNOWN = 1 << 22  # pictures in a file of the cache, those that have changed or gone among them
KEEP_FROM_BYTES = 32 << 20  # files that are decoded in less than about a second are not worth a cache


class Picture(NamedTuple):
    """Picture that can be decoded. size: (H, W); brightest: its largest value, 0 to 255."""

    size: tuple[int, int]
    brightest: int


def look_at(data: CocoData, num_threads: int = 8, input: InputConfig | None = None) -> list[Picture | str]:
    """Yield a `Picture` for each image of the set, or a reason why there is none: "no file ..." where it is missing.

    input: whose bands, if any, the pictures are to have, all in one depth; nothing is kept of bands.
    """
    input = input or InputConfig()
    paths = [data.image_path(i) if data.file_name(i) else None for i in range(data.num_images)]
    keys, sizes = _keys(paths)
    if input.channels:
        input = dataclasses.replace(input, depth=input.depth or _first_depth(paths, input))
        return list(_decoded(paths, keys, {}, num_threads, input))
    folder = data.images_dir.resolve()
    name = f"{cache_name(folder.name, folder)}.pictures"  # for all sets and parts with pictures there
    known = _known(name)
    if sum(size for key, size in zip(keys, sizes) if key not in known) < KEEP_FROM_BYTES:
        return list(_decoded(paths, keys, known, num_threads))
    with locked(name):
        known |= _known(name)  # of the process that had the lock
        return _decoded_and_kept(name, paths, keys, known, num_threads)


class StillReadable:
    """Pictures of a checked set that have become unreadable since: only those that have changed are decoded again."""

    def __init__(self, data: CocoData, input: InputConfig | None = None) -> None:
        self._data, self._input = data, input or InputConfig()
        self._paths = [data.image_path(i) for i in range(data.num_images)]
        self._keys = _keys(self._paths)[0]

    def lost(self) -> dict[int, str]:
        """Image numbers of the lost pictures, and the fault of each."""
        now = _keys(self._paths)[0]
        changed = [i for i, (old, new) in enumerate(zip(self._keys, now)) if old != new]
        found = ((i, _look(self._paths[i], None, self._input)) for i in changed)
        sizes = self._data.sizes
        return {
            i: p if isinstance(p, str) else f"{self._paths[i]}: its size has changed to {p.size}"
            for i, p in found
            if isinstance(p, str) or p.size != tuple(sizes[i].tolist())
        }


def _decoded_and_kept(
    name: str, paths: Sequence[Path | None], keys: Sequence[int], known: dict[int, int], num_threads: int
) -> list[Picture | str]:
    found: list[Picture | str] = []
    try:
        with _bar(len(paths)) as advance:
            for picture in _decoded(paths, keys, dict(known), num_threads):
                found.append(picture)
                advance()
    finally:
        sound = {key: p.brightest for key, p in zip(keys, found) if isinstance(p, Picture)}
        sound |= (
            known if len(known) < _MOST_KNOWN else {k: known[k] for k in keys[len(found) :] if k in known}
        )
        table = {
            "keys": np.array(list(sound), np.uint64),
            "brightest": np.array(list(sound.values()), np.uint8),
        }
        keep(name, table, f"{VERSION}")
    return found


def _keys(paths: Sequence[Path | None]) -> tuple[list[int], list[int]]:
    """A key for each file's path, size and time of change, and its size in bytes; both 0 where there is none."""
    keys, sizes = [], []
    for path in paths:
        try:
            state = os.stat(path or "")
        except (OSError, ValueError):  # a name with a zero in it
            keys.append(0)
            sizes.append(0)
            continue
        text = f"{os.path.abspath(path or '')}:{state.st_size}:{state.st_mtime_ns}"
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))
        sizes.append(state.st_size)
    return keys, sizes


def _known(name: str) -> dict[int, int]:
    """The brightest value of each picture that was found sound, by its key."""
    arrays = kept(name, f"{VERSION}")
    return {} if arrays is None else dict(zip(arrays["keys"].tolist(), arrays["brightest"].tolist()))


def _decoded(
    paths: Sequence[Path | None],
    keys: Sequence[int],
    known: dict[int, int],
    num_threads: int,
    input: InputConfig | None = None,
) -> Iterator[Picture | str]:
    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(lambda path, key: _look(path, known.get(key), input), paths, keys)


def _first_depth(paths: Sequence[Path | None], input: InputConfig) -> Any:
    """Depth of the first picture that can be read; none if none can."""
    from maskrcnn.images.bands import read_bands

    for path in paths:
        with contextlib.suppress(UserError):
            if path is not None:
                return read_bands(path, input).dtype.name
    return ""


def _look(path: Path | None, brightest: int | None, input: InputConfig | None = None) -> Picture | str:
    """Decode a picture, or read its header alone where its brightest value is known."""
    from maskrcnn.images.bands import read_input
    from maskrcnn.images.read import image_size

    if path is None:
        return "no file name in the labels"
    if not os.path.isfile(path):
        return f"no file {path}"
    try:
        if brightest is not None:
            return Picture(image_size(path), brightest)
        pixels = read_input(path, input or InputConfig())
    except UserError as e:
        return str(e).rstrip(".")
    brightest = int(pixels.max(initial=0))
    if input is not None and input.channels and brightest:
        brightest = 255  # what is dark in a range that was not measured yet may be bright when stretched
    return Picture((pixels.shape[0], pixels.shape[1]), brightest)


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("pictures", total=total)
        yield lambda: progress.advance(task)
