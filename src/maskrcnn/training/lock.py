"""A run's folder belongs to one training at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from maskrcnn.errors import UserError
from maskrcnn.files import as_user_error, check_writable_folder

NAME = ".lock"


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run's folder while the block runs.

    The system drops the lock with the process that holds it, however that ends, so a killed run leaves none; data
    loading workers, which may outlive it for seconds, do not inherit it. Where the file system knows no locks, and on
    Windows, nothing is held.

    Raises:
        UserError: another process trains into the folder, or it cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    check_writable_folder(run)
    path = run / NAME
    while True:
        with as_user_error(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise UserError(
                f"--out {run}: another process is training into this folder. Wait for its end, stop it, or choose "
                "another folder."
            ) from None
        except OSError:  # no locks here
            pass
        if _still_there(path, descriptor):
            break
        os.close(descriptor)  # its holder removed it between our opening and locking it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
