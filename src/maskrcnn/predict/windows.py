"""Windows of pictures that are too large to be looked at as a whole.

A TIFF file is read strip by strip or tile by tile (tifffile, extra `micro`), so that a window costs what it covers.
Every other file is decoded once, by the rules of `images.read`; arrays, memory-mapped ones too, are sliced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskrcnn.errors import UserError, described, one_line
from maskrcnn.images.read import read_image


class Windows(Protocol):
    """A picture that hands out windows of itself."""

    size: tuple[int, int]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Read a window, ends excluded: (y1 - y0, x1 - x0, 3) uint8 RGB.

        Raises:
            UserError: it cannot be read; the message names the file and the window.
        """
        ...


def open_windows(source: str | Path | np.ndarray) -> Windows:
    """Open a picture for reading windows of it: a path, or an (H, W, 3) uint8 RGB array.

    Raises:
        UserError: the file cannot be read, or holds no picture of one or three bands and 8 or 16 bits.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise UserError(f"predict_tiled: expected an (H, W, 3) uint8 array, got {described(source)}.")
        return ArrayWindows(source)
    if not isinstance(source, str | Path):
        raise UserError(f"predict_tiled: expected a path or an array, got {described(source)}.")
    path = Path(source)
    if path.suffix.lower() in (".tif", ".tiff", ".btf", ".svs") and path.is_file() and _has_tifffile():
        return TiffWindows(path)
    return ArrayWindows(read_image(path))


class ArrayWindows:
    """Windows of an array (H, W, 3) uint8."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.size = pixels, (pixels.shape[0], pixels.shape[1])

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[y0:y1, x0:x1])


class TiffWindows:
    """Windows of a TIFF's first page, of which only the strips or tiles beneath a window are decoded."""

    def __init__(self, path: Path) -> None:
        import tifffile

        self.path = path
        try:
            with tifffile.TiffFile(path) as file:
                self.page: Any = file.pages[0].aspage()
                self.tables = self.page.jpegtables
        except Exception as e:  # a corrupt file raises nearly anything
            raise UserError(f"{path}: cannot read: {one_line(str(e))}.") from None
        page = self.page
        bands, depth = int(page.samplesperpixel), str(page.dtype)
        if page.photometric.name not in ("MINISBLACK", "RGB", "YCBCR") or depth not in ("uint8", "uint16"):
            raise UserError(
                f"{path}: expected grey or RGB of 8 or 16 bits, got {page.photometric.name} {depth}. Convert it."
            )
        if bands == 2 or (bands > 1 and page.planarconfig != 1) or page.imagedepth != 1:
            raise UserError(
                f"{path}: expected one band or interleaved RGB, got {bands} bands {page.shape}. Convert it."
            )
        self.size = (int(page.imagelength), int(page.imagewidth))
        # A page's strips are tiles of its whole width.
        self.block = (
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (min(int(page.rowsperstrip), self.size[0]), self.size[1])
        )

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        window = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        high, wide = self.block
        across = -(-self.size[1] // wide)
        try:
            with open(self.path, "rb") as file:
                for row in range(y0 // high, -(-y1 // high)):
                    for column in range(x0 // wide, -(-x1 // wide)):
                        pixels = self._decoded(file, row * across + column)
                        if pixels is None:  # sparse: never written
                            continue
                        top, left = row * high, column * wide
                        a, b = max(y0, top), min(y1, top + len(pixels))
                        c, d = max(x0, left), min(x1, left + pixels.shape[1])
                        window[a - y0 : b - y0, c - x0 : d - x0] = pixels[
                            a - top : b - top, c - left : d - left
                        ]
        except Exception as e:
            reason = one_line(str(e)) or type(e).__name__
            raise UserError(
                f"{self.path}: cannot read the window {x0},{y0} to {x1},{y1}: {reason}."
            ) from None
        return window

    def _decoded(self, file: Any, index: int) -> np.ndarray | None:
        """Decode one strip or tile to (h, w, 3 or 1) uint8."""
        count = self.page.databytecounts[index]
        if not count:
            return None
        file.seek(self.page.dataoffsets[index])
        data = file.read(count)
        if len(data) < count:
            raise ValueError("the file is cut off")
        pixels = self.page.decode(data, index, jpegtables=self.tables)[0]
        if pixels is None:
            return None
        pixels = pixels[0]  # of one depth
        if pixels.dtype == np.uint16:  # as images.read does
            grey = pixels.shape[2] == 1
            pixels = ((pixels.astype(np.uint32) + 128) // 257 if grey else pixels >> 8).astype(np.uint8)
        if self.page.photometric.name == "MINISBLACK":
            return pixels[..., :1]
        return pixels[..., :3]


def _has_tifffile() -> bool:
    from importlib.util import find_spec

    return find_spec("tifffile") is not None
