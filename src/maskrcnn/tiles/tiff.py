"""Windows of a TIFF file by Pillow alone: each strip or tile is decoded as a small TIFF of its own.

So every compression that Pillow's libtiff knows is read, by the rules of `images.read`, and a window costs the blocks
beneath it. The first page only; files whose bands lie apart, or that are stored turned, are left to others.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.errors import UserError, one_line
from maskrcnn.images.read import read_image

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_STRIP = 2**20  # bytes of a strip, where it is ours to choose
_KEPT = 2**27  # bytes of decoded blocks: a strip as wide as the picture lies beneath many tiles

_WIDTH, _LENGTH, _DESCRIPTION, _ORIENTATION, _PLANAR = 256, 257, 270, 274, 284
_OFFSETS, _ROWS, _COUNTS = 273, 278, 279
_TILES = _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_COMPRESSION = 259
# None, CCITT (2 to 4), LZW, JPEG, deflate (8, 32946), PackBits, LZMA, Zstandard: what Pillow's wheels have.
_KNOWN = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000)
# How a block's bytes are to be understood: depth, compression, colours, bit order, bands, predictor, palette, what
# extra bands and numbers are, JPEG's tables, and YCbCr.
_DECODING = (258, _COMPRESSION, 262, 266, 277, 317, 320, 338, 339, 347, 529, 530, 532)


def open_tiff(path: Path) -> TiffWindows | None:
    """Open a TIFF file's first page; None where Pillow cannot read it block by block.

    Raises:
        UserError: the file cannot be opened.
    """
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with open(path, "rb") as file:
            page = TiffImageFile(file, "").tag_v2
        return TiffWindows(path, page) if _has_blocks(page) else None
    except OSError as e:
        if e.errno is None:  # Pillow's own word for what it cannot read
            return None
        raise UserError(f"{path}: cannot read the image: {e.strerror}.") from None
    except Exception:  # on a corrupt file it raises nearly anything; who reads it next says what is wrong
        return None


def _has_blocks(page: ImageFileDirectory_v2) -> bool:
    """Return True if a page's blocks can be decoded one by one, each with all its bands."""
    needed = _TILES if _TILE_OFFSETS in page else (_OFFSETS, _COUNTS)
    return (
        page.get(_COMPRESSION, 1) in _KNOWN
        and page.get(_PLANAR, 1) == 1
        and page.get(_ORIENTATION, 1) == 1
        and all(tag in page for tag in needed)
    )


class TiffWindows:
    """Windows of a TIFF's first page, of which only the strips or tiles beneath a window are decoded."""

    def __init__(self, path: Path, page: ImageFileDirectory_v2) -> None:
        self.path, self.prefix = path, page.prefix
        self.size = self.full_size = (int(page[_LENGTH]), int(page[_WIDTH]))
        self.is_ome = "<OME" in str(page.get(_DESCRIPTION, ""))
        self.decoding = {tag: (page.tagtype[tag], page[tag]) for tag in _DECODING if tag in page}
        self.is_tiled = _TILE_OFFSETS in page
        if self.is_tiled:
            self.block = (int(page[_TILE_LENGTH]), int(page[_TILE_WIDTH]))
            self.offsets, self.counts = page[_TILE_OFFSETS], page[_TILE_COUNTS]
        else:
            rows = min(int(page.get(_ROWS, self.size[0])), self.size[0])
            self.block = (rows, self.size[1])
            self.offsets, self.counts = page[_OFFSETS], page[_COUNTS]
            if page.get(_COMPRESSION, 1) == 1 and rows == self.size[0]:
                self._divide()
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        window = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        high, wide = self.block
        across = -(-self.size[1] // wide)
        where = f"{self.path}, window {x0},{y0} to {x1},{y1}"
        try:
            with open(self.path, "rb") as file:
                for row in range(y0 // high, -(-y1 // high)):
                    for column in range(x0 // wide, -(-x1 // wide)):
                        pixels = self._block(file, row * across + column, where)
                        if pixels is None:  # sparse: never written
                            continue
                        top, left = row * high, column * wide
                        a, b = max(y0, top), min(y1, top + len(pixels))
                        c, d = max(x0, left), min(x1, left + pixels.shape[1])
                        window[a - y0 : b - y0, c - x0 : d - x0] = pixels[
                            a - top : b - top, c - left : d - left
                        ]
        except UserError:
            raise
        except Exception as e:
            raise UserError(f"{where}: cannot read: {one_line(str(e)) or type(e).__name__}.") from None
        return window

    def missing(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray | None:
        return None

    def _divide(self) -> None:
        """Take a picture that is stored as one strip, without compression, for strips of few rows."""
        height, width = self.size
        stride, left = divmod(self.counts[0], height)
        rows = max(1, min(height, _STRIP // max(1, stride)))
        if left or not stride:
            return
        starts = range(0, height, rows)
        self.block = (rows, width)
        self.offsets = tuple(self.offsets[0] + y * stride for y in starts)
        self.counts = tuple(min(rows, height - y) * stride for y in starts)

    def _block(self, file: Any, index: int, where: str) -> np.ndarray | None:
        """Decode a strip or tile to (h, w, 3) uint8, or take it from those used last; None if it was never written."""
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        count = self.counts[index]
        if not count:
            return None
        file.seek(self.offsets[index])
        data = file.read(count)
        if len(data) < count:
            raise ValueError("the file is cut off")
        high, wide = self.block
        rows = high if self.is_tiled else min(high, self.size[0] - index * high)
        pixels = read_image(_TiffFile(where, self._head(rows, wide, len(data)) + data))
        self.kept[index] = pixels
        if len(self.kept) > max(1, _KEPT // (3 * high * wide)):
            self.kept.popitem(last=False)
        return pixels

    def _head(self, rows: int, wide: int, length: int) -> bytes:
        """Head of a TIFF file of one strip, whose bytes come next."""
        from PIL import TiffTags
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        page = ImageFileDirectory_v2(prefix=self.prefix)
        for tag, (kind, value) in self.decoding.items():
            page.tagtype[tag], page[tag] = kind, value
        sizes = {_WIDTH: wide, _LENGTH: rows, _ROWS: rows, _OFFSETS: 0, _COUNTS: length}
        for tag, value in sizes.items():
            page.tagtype[tag], page[tag] = TiffTags.LONG, value
        head = io.BytesIO()
        page.save(head)  # puts the first strip's offset behind what it writes
        return head.getvalue()


class _TiffFile(io.BytesIO):
    """File in memory with a name for messages."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name
