"""Requests' bodies: read within bounds of bytes and time, and the picture in them, as bytes.

A picture comes as the body itself or as the field `image` of a form. It is kept in memory, never on the disk, and its
file name is not looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from maskrcnn.serve.errors import RequestError

FIELD = "image"
_BUDGET = 16  # requests of the largest size whose bytes may be held at a time
_RAW = ("application/octet-stream", "binary/octet-stream", "")


@dataclass(slots=True)
class Uploads:
    """Counter of the bytes of all requests that are being read or answered."""

    max_bytes: int
    seconds: float
    held: int = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request; its bytes count until the block ends.

        Raises:
            RequestError: it is too large (413), too slow (408), of no type that holds a picture (415), or too many
                requests are being read (503).
        """
        _check_type(request)
        _check_length(request, self.max_bytes)
        chunks, taken = bytearray(), 0
        try:
            async with asyncio.timeout(self.seconds):
                async for chunk in request.stream():
                    taken += len(chunk)
                    self.held += len(chunk)
                    if taken > self.max_bytes:
                        raise _too_large(self.max_bytes)
                    if self.held > _BUDGET * self.max_bytes:
                        raise RequestError(503, "too many pictures are being sent. Try again later.")
                    chunks += chunk
            yield bytes(chunks)
        except TimeoutError:
            raise RequestError(
                408, f"the request took longer than {self.seconds:g} seconds to arrive."
            ) from None
        except ClientDisconnect:
            raise RequestError(499, "the client has gone.") from None
        finally:
            self.held -= taken


def picture_in(body: bytes, content_type: str) -> bytes:
    """Take the bytes of the picture from a request's body.

    Raises:
        RequestError: there is none (400), the form cannot be read (400), or has no field `image` (422).
    """
    kind, options = parse_options_header(content_type)
    picture = body
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary")
        if not boundary:
            raise RequestError(400, "the form has no boundary in its Content-Type.")
        picture = _field(body, boundary)
    if not picture:
        raise RequestError(400, f"{FIELD}: expected a picture, got no bytes.")
    return picture


@dataclass(slots=True)
class _Form:
    """Parts of a form as the parser meets them; the bytes of the first one called `image` are kept."""

    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    name: bytes = b""
    picture: bytearray | None = None
    keeps: bool = False
    ended: bool = False

    def begin(self) -> None:
        self.name, self.keeps = b"", False

    def end_header(self) -> None:
        if bytes(self.header).lower() == b"content-disposition":
            self.name = parse_options_header(bytes(self.value))[1].get(b"name", b"")
        self.header.clear()
        self.value.clear()

    def end_headers(self) -> None:
        self.keeps = self.name == FIELD.encode() and self.picture is None
        if self.keeps:
            self.picture = bytearray()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self.keeps and self.picture is not None:
            self.picture += data[start:end]

    def end(self) -> None:
        self.ended = True


def _field(body: bytes, boundary: bytes) -> bytes:
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": lambda data, start, end: form.header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: form.value.extend(data[start:end]),
                "on_header_end": form.end_header,
                "on_headers_finished": form.end_headers,
                "on_part_data": form.data,
                "on_end": form.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError):
        raise RequestError(400, "the form cannot be read: it is damaged or cut off.") from None
    if form.picture is None:
        raise RequestError(422, f"{FIELD}: expected a picture in the form's field {FIELD!r}, got none.")
    if not form.ended:
        raise RequestError(400, "the form cannot be read: it is damaged or cut off.")
    return bytes(form.picture)


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in _RAW and not kind.startswith("image/") and kind != "multipart/form-data":
        raise RequestError(
            415,
            f"Content-Type: expected image/..., application/octet-stream or multipart/form-data with a field "
            f"{FIELD!r}, got another. With curl: -F image=@FILE.",
        )


def _check_length(request: Request, max_bytes: int) -> None:
    """Refuse by the length that is told, before a byte is read."""
    told = request.headers.get("content-length", "")
    if told.isascii() and told.isdigit() and int(told[:18]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(413, f"{FIELD}: expected at most {max_bytes} bytes, got more.")
