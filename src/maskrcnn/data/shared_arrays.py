"""Named arrays in one memory-mapped file, so that all processes of a machine share one copy.

Whatever way a process is started (fork, spawn, forkserver, torchrun, a Ray actor), it maps the same file, and
the system keeps its pages once. What a process changes (`patched`) is private to it, page by page, and travels
to other processes as the change alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.files import cache_folder

_MAGIC = b"MRCNNAR1"
_ALIGN = 64
Patch = tuple[str, np.ndarray, np.ndarray]  # array name, indices of rows, their new values


class SharedArrays(Mapping[str, np.ndarray]):
    """Read-only arrays by name, with `meta`, a JSON object about them. Backed by `path`, or by memory without."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        meta: dict[str, Any],
        path: Path | None = None,
        patches: tuple[Patch, ...] = (),
    ) -> None:
        for name, index, values in patches:
            if path is None:
                arrays = {**arrays, name: arrays[name].copy()}
            arrays[name][index] = values
        for array in arrays.values():
            array.flags.writeable = False
        self._arrays, self._patches = arrays, patches
        self.meta, self.path = meta, path

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._arrays.values())

    def patched(self, patches: tuple[Patch, ...]) -> SharedArrays:
        """Copy of the arrays with some rows replaced; the pages that do not change stay shared."""
        if not patches:
            return self
        if self.path is None:
            return SharedArrays(dict(self._arrays), self.meta, None, patches)
        return _map(self.path, self.meta["stamp"], self._patches + patches)

    def __reduce__(self) -> tuple[Callable[..., SharedArrays], tuple[Any, ...]]:
        if self.path is None:
            return SharedArrays, (self._arrays, self.meta)
        return _map, (self.path, self.meta["stamp"], self._patches)


def load_or_make(
    source: Path,
    version: int | str,
    make: Callable[[], tuple[dict[str, np.ndarray], dict]],
    min_bytes: int,
    files: Sequence[Path] = (),
    part: str = "",
) -> SharedArrays:
    """The arrays that `make()` makes from the file `source`, or from `files` in the folder `source`, shared through
    a cache file: one for each `part` that is made from the same source.

    The cache is keyed by the files' paths, sizes and times of change and by `version`, the version of what `make`
    does. Of several processes that ask at once, one makes it and the others wait. It lies in MASKRCNN_CACHE,
    else in the user's cache folder, else (if that cannot be written) among the temporary files. Sources below
    `min_bytes` are not worth a file: their arrays stay in memory and are copied to processes that are spawned.
    """
    states = [(path, path.stat()) for path in files or (source,)]
    if sum(state.st_size for _, state in states) < min_bytes:
        return SharedArrays(*make())
    texts = (f"{path.resolve()}:{state.st_size}:{state.st_mtime_ns}" for path, state in states)
    stamp = f"{_digest('|'.join(texts))}:{version}"
    name = f"{cache_name(source.stem, source.resolve(), *filter(None, [part]))}.arrays"
    made = None
    for folder in _cache_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{name}.lock"):
                try:
                    return _map(folder / name, stamp)
                except (OSError, ValueError):  # absent, stale or not ours
                    made = made or make()
                    _write(folder / name, made[0], {**made[1], "stamp": stamp})
                    return _map(folder / name, stamp)
        except OSError:  # not writable, or no space: the next folder
            continue
    return SharedArrays(*(made or make()))


def cache_name(stem: str, *whose: object) -> str:
    """Name of a file in the cache, without its ending: readable, and another one for each of `whose`."""
    return f"{stem}-{_digest('|'.join(map(str, whose)))[:16]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # paths need not be UTF-8


def kept(name: str, stamp: str) -> SharedArrays | None:
    """The arrays that `keep` wrote into the cache under this name and stamp, if they are there."""
    for folder in _cache_folders():
        with contextlib.suppress(OSError, ValueError):
            return _map(folder / name, stamp)
    return None


def keep(name: str, arrays: dict[str, np.ndarray], stamp: str) -> None:
    """Write arrays into the cache under a name, in the place of what is there; nothing where it cannot be written."""
    for folder in _cache_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, arrays, {"stamp": stamp})
            return


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Block that one process of the machine is in at a time, by name; all are where no cache can be written."""
    with contextlib.ExitStack() as stack:
        for folder in _cache_folders():
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(folder / f"{name}.lock"))
                break
        yield


def _cache_folders() -> list[Path]:
    if os.environ.get("MASKRCNN_CACHE"):
        return [cache_folder()]
    return [cache_folder(), Path(tempfile.gettempdir()) / f"maskrcnn-{os.getuid()}"]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the work is done twice, no harm
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write one file, whole or not at all: magic, length of the header, header as JSON, the arrays' bytes."""
    table, offset = {}, 0
    for name, array in arrays.items():
        table[name] = (array.dtype.str, array.shape, offset)
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"meta": meta, "arrays": table, "nbytes": offset}).encode()
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % _ALIGN)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data if array.nbytes else b"")
                file.write(b"\0" * (-array.nbytes % _ALIGN))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _map(path: Path, stamp: str, patches: tuple[Patch, ...] = ()) -> SharedArrays:
    """Map the file that `_write` wrote. ValueError if it is not one, or is not of this `stamp`."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not an array file")
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    if header["meta"]["stamp"] != stamp:
        raise ValueError(f"{path}: made from another version of its source")
    first = len(_MAGIC) + 8 + size
    if path.stat().st_size < first + header["nbytes"]:
        raise ValueError(f"{path}: cut short")
    pages = np.memmap(path, np.uint8, mode="c")  # copy on write: what is not written stays shared
    arrays = {}
    for name, (dtype, shape, offset) in header["arrays"].items():
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part = np.asarray(pages[first + offset : first + offset + nbytes])
        arrays[name] = part.view(dtype).reshape(shape)
    return SharedArrays(arrays, header["meta"], path, patches)
