"""Checks of JPEG, PNG and WebP files before they are decoded: completeness, size and kind.

Decoders paint what is missing of a picture grey and say nothing. The formats differ in what they let one know:

- PNG has a checksum for every chunk and an end: any damage shows.
- JPEG has an end, but a file can be cut and closed again. Of a picture in one scan, `for_decoding` gives what a
  decoder cannot finish where coded pixels are missing; of one in several scans (progressive), missing scans show,
  and only the last one may be cut, which is the last bit of its coefficients.
- WebP states its length and has neither checksum nor end: a cut file shows. Of one that ends in zeros, as after a
  crash, `webp_without_zeros` gives what cannot be decoded if the zeros are needed, as they are where a picture ends
  in one colour. Other wrong bytes in its coded pixels do not show.
- BMP and uncompressed TIFF: zeros are black pixels, as good as any.

Functions raise `ValueError`, with the reason alone, for a file that is not whole.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Literal, NamedTuple

# Endings by which pictures are found in folders.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

__all__ = ["PictureFile", "for_decoding", "format_of", "png_file", "webp_file", "webp_without_zeros"]

Data = bytes | memoryview

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded pixels: 00 stands for nothing, D0..D7 restart
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}  # without a length and content
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (
    {0xC0, 0xC1},
    {0xC2},
)  # by Huffman's codes; the others are arithmetic, lossless, ...
_READ_AHEAD = b"\xff\x00" * 8  # 64 bits; no code is all ones, so that they stand for two blocks at most
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ZEROS = 32  # bytes; decoders read fewer ahead


class PictureFile(NamedTuple):
    """Facts from the head of an image file."""

    size: tuple[int, int]  # (H, W) as stored
    animated: bool = False
    deep: bool = False  # 16 bits a channel


def format_of(head: Data) -> Literal["jpeg", "png", "webp", "other"]:
    """Tell an image file's format by its first 12 bytes or more."""
    head = bytes(head[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else "other"


def png_file(data: Data) -> PictureFile:
    """Read the head of a PNG file, all of whose chunks that carry the picture must be there, with right checksums."""
    head, animated, has_pixels, place = b"", False, False, 8
    while True:
        if place + 12 > len(data):
            raise ValueError("the file ends before the picture does")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            raise ValueError("the file ends before the picture does")
        if kind in _CRITICAL:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(data[place + 4 : end - 4]) != checksum:
                raise ValueError(f"it is damaged: a checksum is wrong from byte {place} on")
        elif not kind.isalpha():
            raise ValueError(f"it is damaged from byte {place} on")
        if not head:
            if kind != b"IHDR" or length != 13:
                raise ValueError("it is damaged: it does not begin with its size")
            head = bytes(data[place + 8 : place + 21])
        has_pixels |= kind == b"IDAT"
        animated |= kind == b"acTL"
        if kind == b"IEND":
            break
        place = end
    if not has_pixels:
        raise ValueError("the file ends before the picture does")
    width, height, bits = struct.unpack_from(">IIB", head)
    return PictureFile((height, width), animated, bits == 16)


def webp_file(data: Data) -> PictureFile:
    """Read the head of a WebP file, which must have the length it states."""
    (stated,) = struct.unpack_from("<I", data, 4)
    if len(data) < stated + 8 or len(data) < 30:
        raise ValueError("the file ends before the picture does")
    kind, body = bytes(data[12:16]), bytes(data[20:30])
    if kind == b"VP8X":
        size = (int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1)
        return PictureFile(size, animated=bool(body[0] & 2))
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        return PictureFile((height, width))
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return PictureFile(((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1))
    raise ValueError("it is damaged: it does not begin with a picture")


def webp_without_zeros(data: Data) -> bytes | None:
    """Shorten a WebP file by 32 bytes if its picture ends in 64 zeros or more; else None. A picture whose end was
    lost still decodes then.

    An encoder writes no more than a decoder reads: without them a whole picture cannot be decoded. One whose end
    was lost can, because zeros stand for less than what they replace.
    """
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        pixels = data[place + 8 : place + 8 + length]
        if kind in (b"VP8 ", b"VP8L"):
            break
        place += 8 + length + length % 2
    else:
        return None
    if len(pixels) <= 2 * _ZEROS or any(pixels[-2 * _ZEROS :]):
        return None
    kept = bytes(pixels[:-_ZEROS])
    body = bytes(data[8:place]) + struct.pack("<4sI", kind, len(kept)) + kept + bytes(len(kept) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def for_decoding(data: Data) -> bytes:
    """Change a JPEG file's bytes to a form that decodes only if the picture is whole.

    Of a picture in one scan: without its end. A decoder that meets the end, or any marker, too early takes zeros
    for what is missing; one that waits for more bytes says so. What decoders read ahead stands in the marker's place.
    """
    components: tuple[int, ...] = ()
    covered: dict[int, list[int | None]] = {}  # of each component's coefficients, the lowest bit that came
    progressive, place = False, 2
    while True:
        marker, place = _next_marker(data, place)
        if marker == _END_OF_IMAGE:
            break
        if marker in _BARE_MARKERS:
            continue
        body, place = _segment(data, place)
        if marker in _FRAMES and len(body) >= 6:
            progressive = marker in _PROGRESSIVE
            components = tuple(body[6::3])
            covered = {c: [None] * 64 for c in components}
            if marker not in _SEQUENTIAL | _PROGRESSIVE:
                return bytes(data)
        if marker != _START_OF_SCAN:
            continue
        scan, bits = _scan(body)
        found = _MARKER.search(data, place)
        if found is None:
            raise ValueError("the file ends before the picture does")
        if not progressive and set(scan) >= set(components):
            return bytes(data[: found.start()]) + _READ_AHEAD
        place = found.start()
        for c in set(scan) & set(components):
            first, last, low = bits if progressive else (0, 63, 0)
            covered[c][first : last + 1] = [low] * (min(last, 63) + 1 - first)
    if any(low != 0 for lows in covered.values() for low in lows):
        raise ValueError("the file ends before the picture does: scans are missing")
    return bytes(data)


def _next_marker(data: Data, place: int) -> tuple[int, int]:
    """Find the next marker from `place` on, past bytes that belong to nothing: the marker and the place behind it."""
    found = _MARKER.search(data, place)
    if found is None:
        raise ValueError("the file ends before the picture does")
    return data[found.start() + 1], found.end()


def _segment(data: Data, place: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[place : place + 2], "big")
    if length < 2 or place + length > len(data):
        raise ValueError("the file ends before the picture does")
    return bytes(data[place + 2 : place + length]), place + length


def _scan(body: bytes) -> tuple[bytes, tuple[int, int, int]]:
    """Parse a scan's header: its components; the first and last coefficient it brings, and the bit that it brings
    them to.
    """
    count = body[0] if body else 0
    if count == 0 or len(body) < 4 + 2 * count:
        raise ValueError("it is damaged: a scan without components")
    first, last, bits = body[1 + 2 * count : 4 + 2 * count]
    return body[1 : 1 + 2 * count : 2], (first, last, bits & 15)
