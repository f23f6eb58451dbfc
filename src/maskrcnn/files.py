"""Output files: checked before the work, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from maskrcnn.errors import UserError

_SPARE_BYTES = 1 << 20  # an output that cannot even take this is not worth starting for


def cache_folder() -> Path:
    """Folder of the user's cache: `MASKRCNN_CACHE`, else `$XDG_CACHE_HOME/maskrcnn`, else `~/.cache/maskrcnn`."""
    if folder := os.environ.get("MASKRCNN_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maskrcnn"


def check_writable(path: str | Path, *, needs_bytes: int = _SPARE_BYTES) -> Path:
    """Make sure, before the work, that a file can be written at `path`; its folder is made if missing.

    Raises:
        UserError: `path` is a folder, may not be written, or has less than `needs_bytes` of space left.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a file to write, got a folder. Name a file in it.")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise UserError(f"{path}: cannot write: permission denied.")
        return path
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot write: the file is there and write-protected. Choose another.")
    _check_folder(_real(path).parent, path, needs_bytes)
    return path


def check_writable_folder(path: str | Path, *, needs_bytes: int = _SPARE_BYTES) -> Path:
    """Make sure, before the work, that files can be written in the folder `path`; it is made if missing.

    Raises:
        UserError: `path` is a file, may not be written, or has less than `needs_bytes` of space left.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected a folder to write in, got a file. Choose another.")
    _check_folder(path, path, needs_bytes)
    return path


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`; a reader sees the old file or the whole new one.

    Raises:
        UserError: the file cannot be written; what was there before is still there.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, in the folder of `path`; it becomes `path` when the block ends well.

        with atomic_path("run/model.safetensors") as temporary:
            save_file(state, temporary)

    The data is on the disk before the name changes. If the block raises, nothing of it is left. Devices
    and pipes (`/dev/stdout`) are handed through as they are.

    Raises:
        UserError: for an `OSError` on the output, in the block or after it.
    """
    path = Path(path)
    if _is_special(path):
        with as_user_error(path):
            yield path
        return
    target = _real(path)
    # The suffix stays last: writers of pictures go by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.{os.urandom(3).hex()}.tmp{target.suffix}")
    try:
        with as_user_error(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = _usual_mode(temporary)
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(
                    mode
                )  # some writers, as safetensors', make files that only the owner can read
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, marks: str) -> Iterator[Path]:
    """Yield a temporary folder to fill, beside `path`; it becomes `path` when the block ends well.

    An earlier folder of the same kind, which holds a file `marks`, is replaced as a whole. If the block raises, nothing
    of the new one is left.

    Raises:
        UserError: `path` is a file or a folder of other things, or an `OSError` on the output.
    """
    path = _real(Path(path))
    check_replaceable(path, marks)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}.tmp")
    before = temporary.with_suffix(".old")
    try:
        with as_user_error(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.replace(path, before)
            os.replace(temporary, path)
    finally:
        for leftover in (temporary, before):
            shutil.rmtree(leftover, ignore_errors=True)


def check_replaceable(path: str | Path, marks: str) -> None:
    """Make sure that a folder can be written at `path`: nothing is there, an empty folder, or one with a file `marks`.

    Raises:
        UserError: a file, or a folder of other things; the place may not be written, or its disk is full.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected a folder to write, got a file. Choose another.")
    if path.is_dir() and any(path.iterdir()) and not (path / marks).is_file():
        raise UserError(f"{path}: expected a new or empty folder, got one with other files. Choose another.")
    _check_folder(_real(path).parent, path, _SPARE_BYTES)


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing `path`, in the block, into a `UserError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot write: {(e.strerror or str(e)).lower()}.") from e


def _check_folder(folder: Path, shown: Path, needs_bytes: int) -> None:
    """Check a folder by writing a file in it: permission bits say little on network disks, in containers and for
    root.
    """
    probe = folder / f".{os.getpid()}.{os.urandom(3).hex()}.tmp"
    with as_user_error(shown):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.touch()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needs_bytes:
        raise UserError(
            f"{shown}: cannot write: {free / 2**20:.1f} MB left on the disk, "
            f"{needs_bytes / 2**20:.1f} MB needed. Make room or choose another place."
        )


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def _real(path: Path) -> Path:
    """Resolve a symbolic link, so that the file is replaced and not the link."""
    return Path(os.path.realpath(path))


def _usual_mode(path: Path) -> int:
    """Permissions that a new file gets here; asking for the umask itself would change it for other threads."""
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    path.unlink()
    return mode


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
