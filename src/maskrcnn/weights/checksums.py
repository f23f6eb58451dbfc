"""Checksums of the files in a folder, so that a flipped bit is noticed when a file is read.

They are in the text file SHA256SUMS as `sha256sum` writes it, and `sha256sum -c SHA256SUMS` checks them too.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from maskrcnn.files import write_atomic

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\s]+)")


class DamagedError(ValueError):
    """A file that is not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def write_checksums(folder: Path) -> None:
    """Write the checksum of every file in `folder`."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    write_atomic(folder / NAME, "".join(f"{_digest(folder / name)}  {name}\n" for name in names))


def check_folder(folder: Path) -> None:
    """Compare every file with its checksum; a folder without checksums, of an older version, passes.

    Raises:
        DamagedError: a file is missing or differs, or the checksums themselves are damaged.
        OSError: a file cannot be read.
    """
    for name, digest in _read(folder).items():
        _compare(folder / name, digest)


def check_file(path: Path) -> None:
    """Compare a file with its checksum, where the folder holds one for it.

    Raises:
        DamagedError: the file differs.
        OSError: it cannot be read.
    """
    try:
        digest = _read(path.parent).get(path.name)
    except DamagedError:  # the file may be whole; what reads the folder says it
        return
    if digest is not None:
        _compare(path, digest)


def _read(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise DamagedError(folder / NAME, "not lines of a checksum and a name")
    return {match[2]: match[1] for match in found if match}


def _compare(path: Path, digest: str) -> None:
    if not path.is_file():
        raise DamagedError(path, "missing")
    if _digest(path) != digest:
        raise DamagedError(path, "another checksum than it was written with")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
