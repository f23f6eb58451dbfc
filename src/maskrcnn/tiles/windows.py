"""Windows of pictures that are too large to be looked at as a whole.

| picture | read by | a window costs |
|---|---|---|
| plain TIFF, compressed in any way that Pillow knows | `predict.tiff` | the strips or tiles beneath it |
| OME-TIFF, slides with levels, Zarr | `predict.micro` (extra `micro`) | the chunks beneath it |
| GeoTIFF and anything else that GDAL reads | `predict.raster` (extra `geo`) | the blocks beneath it |
| JPEG, PNG and the rest | `images.read`, whole, once | nothing more |

Arrays, memory-mapped ones too, are sliced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from maskrcnn.errors import UserError, check_number, described
from maskrcnn.images.read import image_size, read_image

_TIFF = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff", ".bif", ".gtiff")
_WHOLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # turned by EXIF, which GDAL does not do


class Windows(Protocol):
    """A picture that hands out windows of itself.

    size: (H, W) of the level that is read; full_size: of its largest level.
    """

    size: tuple[int, int]
    full_size: tuple[int, int]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Read a window, ends excluded: (y1 - y0, x1 - x0, 3) uint8 RGB, zeros where there are no data.

        Raises:
            UserError: it cannot be read; the message names the file and the window.
        """
        ...

    def missing(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray | None:
        """Tell where a window has no data: (y1 - y0, x1 - x0) bool, or None where the picture has data everywhere.

        Raises:
            UserError: it cannot be read; the message names the file and the window.
        """
        ...


def open_windows(source: str | Path | np.ndarray, level: int = 0) -> Windows:
    """Open a picture for reading windows of it: a path, or an (H, W, 3) uint8 RGB array.

    level: of a pyramid, 0 the largest.

    Raises:
        UserError: the file cannot be read, lacks the level, needs a package that is not there, or holds no picture of
            one or three bands and 8 or 16 bits.
    """
    level = check_number(level, "predict_tiled: level", 0, whole=True)
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise UserError(f"predict_tiled: expected an (H, W, 3) uint8 array, got {described(source)}.")
        _check_only(level, "predict_tiled")
        return ArrayWindows(source)
    if not isinstance(source, str | Path):
        raise UserError(f"predict_tiled: expected a path or an array, got {described(source)}.")
    path = Path(source)
    if windows := _in_blocks(path, level):
        return windows
    _check_only(level, str(path))
    return ArrayWindows(read_image(path))


def full_size(path: Path) -> tuple[int, int]:
    """Read the (H, W) of a picture's largest level; no pixels are decoded.

    Raises:
        UserError: the file cannot be read.
    """
    windows = _in_blocks(path, 0)
    return image_size(path) if windows is None else windows.full_size


def is_zarr(path: Path) -> bool:
    """Return True for a folder that is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))


def _in_blocks(path: Path, level: int) -> Windows | None:
    """Open a picture whose blocks are decoded one by one; None for one that must be read as a whole."""
    if is_zarr(path):
        from maskrcnn.tiles.micro import open_zarr

        return open_zarr(path, level)
    suffix = path.suffix.lower()
    if suffix in _WHOLE or not path.is_file():
        return None
    from maskrcnn.tiles.gdal import has_gdal

    if has_gdal():
        from maskrcnn.tiles.raster import open_raster

        if raster := open_raster(path, level, pictures=suffix not in _TIFF):
            return raster
    return _tiff(path, level) if suffix in _TIFF else None


def _tiff(path: Path, level: int) -> Windows | None:
    """Open a TIFF file that is no raster; None for one that must be read as a whole."""
    from maskrcnn.tiles.micro import check_micro, has_micro, open_slide
    from maskrcnn.tiles.tiff import open_tiff

    plain = open_tiff(path)
    if level == 0 and plain is not None and not plain.is_ome:
        return plain
    if level:
        check_micro(path, f"level {level}")
    return open_slide(path, level) if has_micro() else plain


def _check_only(level: int, where: str) -> None:
    if level:
        raise UserError(f"{where}: expected level 0, the only one, got {level}.")


class ArrayWindows:
    """Windows of an array (H, W, 3) uint8."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.size = pixels, (pixels.shape[0], pixels.shape[1])
        self.full_size = self.size

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[y0:y1, x0:x1])

    def missing(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray | None:
        return None
