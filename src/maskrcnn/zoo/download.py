"""Download of published files to a cache: each is fetched once, checked, and never half there.

| variable | meaning |
|---|---|
| `MASKRCNN_CACHE` | the folder to keep files in; by default `$XDG_CACHE_HOME/maskrcnn`, else `~/.cache/maskrcnn` |
| `MASKRCNN_OFFLINE` | `1`: use what the cache holds and never the network |
| `MASKRCNN_MIRROR` | an address that takes the place of every scheme and host: `https://mirror.example/weights` |

A file lies in the cache under its address, `HOST/PATH`. While it is fetched it is `.NAME.part`, with `.NAME.part.json`
beside it that says of what; a broken download goes on from there. `.NAME.json` holds the whole file's sha256, size and
time: size and time are compared at every use, the sha256 again when they changed. A name that holds the beginning of
its sha256 as PyTorch's do, `deit_tiny_patch16_224-a1311bcf.pth`, is held to it. (The six digits of detectron2's
`model_final_f10217.pkl` are of something else: its DensePose file `162be9` has a sha256 that begins with b8a738.)
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Protocol

from maskrcnn.errors import UserError
from maskrcnn.files import cache_folder
from maskrcnn.version import __version__

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte more
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubled for each further one
LONGEST_PAUSE = 60.0  # seconds that a server may ask to wait
CHUNK = 1 << 20
SPARE_BYTES = 16 << 20  # left on the disk

_RETRIED = {408, 425, 429, 500, 502, 503, 504}


class _Advance(Protocol):
    def __call__(self, done: int, total: int | None) -> None: ...


class _BrokenError(Exception):
    """Failure of an attempt that another may not share. `pause`: seconds to wait before it; None for the usual time."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def fetch(url: str) -> Path:
    """Fetch the file of an address, from the cache or else from the network. A bar on standard error shows progress.

    Any number of processes may ask for it at once: one fetches, the others wait.

    Raises:
        UserError: it cannot be had: no network or offline, no such file, no space, another content than its name says.
    """
    path = cached_path(url)
    if _is_kept(path):
        return path
    if _offline():
        raise UserError(
            f"{path.name}: not in the cache, and MASKRCNN_OFFLINE is set. "
            f"Put {url} in {path.parent}, or unset MASKRCNN_OFFLINE."
        )
    with _folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not _is_kept(path):  # another process may have fetched it meanwhile
                _Download(url, path).run()
    return path


def cached_path(url: str) -> Path:
    """Path in the cache of an address's file, which need not be there."""
    parts = urllib.parse.urlsplit(url)
    steps = [urllib.parse.unquote(step) for step in parts.path.split("/") if step]
    if parts.scheme not in ("http", "https") or not parts.hostname or not steps:
        raise UserError(f"{url}: expected the address of a file, http:// or https://.")
    if any(step in (".", "..") or "/" in step or "\0" in step for step in steps):
        raise UserError(f"{url}: expected an address without '..' in it.")
    return cache_folder().joinpath(parts.hostname, *steps)


# --- files that are there


def _is_kept(path: Path) -> bool:
    """Return True if the whole file is there, with the content that it had when it was first used.

    Raises:
        UserError: its content changed since, or is not what its name says.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    known = _read_json(_beside(path, ".json"))
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if known.items() >= seen.items():
        return True
    digest = _sha256(path)
    if known and known.get("sha256") != digest:
        raise UserError(
            f"{path}: expected the content that it had at first (sha256 {str(known.get('sha256'))[:12]}...), got "
            f"another ({digest[:12]}...). Delete it, and it is downloaded again."
        )
    _refuse_wrong(path, digest, "Delete it, and it is downloaded again.")
    with contextlib.suppress(OSError):  # a cache that is shared read-only is checked in full each time
        _write_json(_beside(path, ".json"), {"sha256": digest, **seen})
    return True


def _refuse_wrong(path: Path, digest: str, advice: str) -> None:
    wanted = _digest_in(path.name)
    if not digest.startswith(wanted):
        raise UserError(
            f"{path}: expected a content of sha256 {wanted}... as its name says, got {digest[:12]}.... {advice}"
        )


def _digest_in(name: str) -> str:
    """First digits of the sha256 that a published file's name holds; empty if none."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return "" if found is None or found[1].isdecimal() else found[1]  # all decimal: a date


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)


def _offline() -> bool:
    return os.environ.get("MASKRCNN_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file's lock, as one process at a time can; it ends with its process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes at once fetch twice
        yield
        return
    with open(_beside(path, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path.name}: another process downloads it; waiting.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{path}: cannot write to the cache: {(e.strerror or str(e)).lower()}. "
            "Make room, or choose another folder with MASKRCNN_CACHE."
        ) from None


# --- the download


@dataclass(slots=True)
class _Download:
    """Download of one file to `path`, in as many attempts as it takes."""

    url: str
    path: Path

    @property
    def part(self) -> Path:
        return _beside(self.path, ".part")

    @property
    def note(self) -> Path:
        return _beside(self.path, ".part.json")

    def run(self) -> None:
        with _progress(self.path.name) as advance:
            resumed = self._fetch(advance)
            digest = _sha256(self.part)
            if resumed and not digest.startswith(_digest_in(self.path.name)):
                # What lay there was of another file, whatever its server said: once more from the beginning.
                self._forget()
                self._fetch(advance)
                digest = _sha256(self.part)
        try:
            _refuse_wrong(
                self.path, digest, f"{self._address()} serves another file: try again or elsewhere."
            )
            self._refuse_text()
        except UserError:
            self._forget()
            raise
        with open(self.part, "rb+") as file:
            os.fsync(file.fileno())
        status = self.part.stat()
        known = {"sha256": digest, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "url": self.url}
        _write_json(_beside(self.path, ".json"), known)
        os.replace(self.part, self.path)
        self._forget()

    def _fetch(self, advance: _Advance) -> bool:
        """Attempt the download until the part is whole. Returns True if an attempt went on from bytes that were there
        before.
        """
        failures, resumed = 0, False
        while True:
            before = self._have()
            resumed |= before > 0
            try:
                self._attempt(advance)
                return resumed
            except _BrokenError as e:
                failures = 1 if self._have() > before else failures + 1
                if failures == ATTEMPTS:
                    kept = " What came is kept: the next try goes on from there." if self._have() else ""
                    raise UserError(
                        f"{self._address()}: cannot download after {ATTEMPTS} attempts: {e}.{kept}"
                    ) from None
                time.sleep(FIRST_PAUSE * 2 ** (failures - 1) if e.pause is None else e.pause)

    def _attempt(self, advance: _Advance) -> None:
        """Send one request, from the byte that is missing on.

        Raises:
            _BrokenError: it ended early; UserError: another attempt would end likewise.
        """
        have, validator = self._have(), _read_json(self.note).get("validator")
        if have and not (validator or _digest_in(self.path.name)):
            have = 0  # nothing tells whether the rest would be of the same file
        headers = {"User-Agent": f"maskrcnn/{__version__}"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator:
                headers["If-Range"] = validator
        try:
            request = urllib.request.Request(self._address(), headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                self._receive(response, have, advance)
        except urllib.error.HTTPError as e:
            e.close()
            if e.code == 416 and e.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it had come
            self._refused(e, have)
        except urllib.error.URLError as e:
            self._unreachable(e.reason)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as e:
            raise _BrokenError(_said(e)) from None

    def _receive(self, response: Any, have: int, advance: _Advance) -> None:
        """Append the answer to the part, which holds `have` bytes that count."""
        first = _first_byte(response) if response.status == 206 else 0
        if response.status == 206 and first != have:
            self._forget()
            raise _BrokenError("the server sent another range than was asked for")
        if response.headers.get_content_type() == "text/html":
            raise UserError(
                f"{self._address()}: expected a file, got a web page. A proxy or a login may be in the way."
            )
        length = response.headers.get("Content-Length", "")
        rest = int(length) if length.isascii() and length.isdigit() else None
        total = None if rest is None else first + rest
        self._check_space(rest or 0)
        tag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
        _write_json(self.note, {"validator": validator})
        with open(self.part, "rb+" if first else "wb") as file:
            file.seek(first)
            file.truncate()
            done = self._copy(response, file, first, total, advance)
        if total is not None and done < total:
            raise _BrokenError(f"the connection ended at {done} of {total} bytes")

    def _copy(self, response: Any, file: IO[bytes], done: int, total: int | None, advance: _Advance) -> int:
        advance(done, total)
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            advance(done, total)
        return done

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < needed + SPARE_BYTES:
            raise UserError(
                f"{self.path}: {needed / 2**20:.0f} MB to download, {free / 2**20:.0f} MB left on the disk. "
                "Make room, or choose another folder with MASKRCNN_CACHE."
            )

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        if error.code == 416 and have:  # the part is longer than the file: it is of another one
            self._forget()
            raise _BrokenError("the file has changed on the server", pause=0.0)
        if error.code in _RETRIED:
            pause = _retry_after(error.headers.get("Retry-After"))
            if pause is not None and pause > LONGEST_PAUSE:
                raise UserError(
                    f"{self._address()}: the server is busy ({error.code}) and asks to wait {pause:.0f} seconds. "
                    "Try again then."
                )
            raise _BrokenError(f"{error.code} {error.reason}", pause)
        if error.code in (404, 410):
            advice = "Pass a file as weights that you have, or set MASKRCNN_MIRROR to a server that has it."
            raise UserError(f"{self._address()}: no such file on the server ({error.code}). {advice}")
        raise UserError(f"{self._address()}: the server refuses: {error.code} {_said(error.reason)}.")

    def _unreachable(self, reason: Any) -> None:
        import socket
        import ssl

        if isinstance(reason, TimeoutError | ConnectionResetError | ConnectionAbortedError):
            raise _BrokenError(_said(reason))
        advice = "Check the network, or pass a file as weights."
        if isinstance(reason, socket.gaierror):
            raise UserError(f"{self._address()}: cannot find the server: {_said(reason)}. {advice}") from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{self._address()}: cannot trust the server: {_said(reason)}. {advice}"
            ) from None
        raise UserError(f"{self._address()}: cannot reach the server: {_said(reason)}. {advice}") from None

    def _refuse_text(self) -> None:
        """Refuse a file of text: no weights are text, but many servers' refusals are."""
        with open(self.part, "rb") as file:
            head = file.read(512)
        if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
            said = " ".join(head[:60].decode().split())
            raise UserError(
                f"{self._address()}: expected weights, got {f'the text {said!r}' if said else 'nothing'}."
            )

    def _have(self) -> int:
        try:
            return self.part.stat().st_size
        except OSError:
            return 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _address(self) -> str:
        """Address to ask: the mirror's if one is set."""
        mirror = os.environ.get("MASKRCNN_MIRROR", "").rstrip("/")
        if not mirror:
            return self.url
        if not mirror.startswith(("http://", "https://")):
            raise UserError(f"MASKRCNN_MIRROR: expected an address, http:// or https://, got {mirror!r}.")
        parts = urllib.parse.urlsplit(self.url)
        return mirror + urllib.parse.urlunsplit(("", "", parts.path, parts.query, ""))


def _read(response: Any) -> bytes:
    try:
        return response.read1(CHUNK)
    except (http.client.HTTPException, OSError) as e:  # not to be taken for an error of the disk
        raise _BrokenError(_said(e)) from None


def _first_byte(response: Any) -> int:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _retry_after(value: str | None) -> float | None:
    """Parse the seconds that a server asks to wait, given as a number or as a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _said(error: Any) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


@contextlib.contextmanager
def _progress(name: str) -> Iterator[_Advance]:
    """Show a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
