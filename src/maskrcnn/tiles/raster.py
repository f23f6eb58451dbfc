"""Windows of rasters by rasterio (extra `geo`): GeoTIFF, JPEG 2000, VRT and what else GDAL reads.

Bands that are called red, green and blue are these; a single one is grey or has its palette's colours. Where the
raster has no data, by its nodata value, its mask or its alpha, the picture is black and `missing` tells so. The levels
are GDAL's overviews.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.images.depth import check_bands, to_rgb8
from maskrcnn.tiles.gdal import gdal, is_placed, open_gdal, reason


def open_raster(path: Path, level: int = 0, *, pictures: bool = True) -> RasterWindows | None:
    """Open a raster; None for a file that GDAL does not know.

    level: 0 is the raster, k its k-th overview.
    pictures: False also gives None for a file with neither a place nor a nodata value.

    Raises:
        UserError: it lacks the level, or has other bands or another type than a picture.
    """
    raster = open_gdal(path)
    if raster is None or not (pictures or is_placed(raster) or raster.nodata is not None):
        return None
    full_size, levels = (raster.height, raster.width), len(raster.overviews(1)) if raster.count else 0
    if level > levels:
        raise UserError(f"{path}: expected a level from 0 to {levels}, got {level}.")
    if level:
        raster = open_gdal(path, overview_level=level - 1)
    try:
        return RasterWindows(path, raster, full_size)
    except ValueError as e:
        raise UserError(f"{path}: {e}.") from None


class RasterWindows:
    """Windows of a raster that GDAL reads.

    Raises:
        ValueError: bands or a type that are no picture's.
    """

    def __init__(self, path: Path, raster: Any, full_size: tuple[int, int]) -> None:
        from rasterio.enums import MaskFlags

        self.path, self.raster, self.full_size = path, raster, full_size
        self.size = (raster.height, raster.width)
        self.bands = _bands(raster)
        self.palette = _palette(raster) if len(self.bands) == 1 else None
        self.is_whole = all(raster.mask_flag_enums[b - 1] == [MaskFlags.all_valid] for b in self.bands)

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        bands = self._window(self.raster.read, (x0, y0, x1, y1), indexes=self.bands)
        pixels = to_rgb8(bands.transpose(1, 2, 0)) if self.palette is None else self.palette[bands[0]]
        missing = self.missing(x0, y0, x1, y1)
        if missing is not None:
            pixels[missing] = 0
        return pixels

    def missing(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray | None:
        if self.is_whole:
            return None
        return self._window(self.raster.dataset_mask, (x0, y0, x1, y1)) == 0

    def _window(self, read: Any, place: tuple[int, int, int, int], **options: Any) -> np.ndarray:
        x0, y0, x1, y1 = place
        try:
            with gdal():
                return read(window=((y0, y1), (x0, x1)), **options)
        except Exception as e:
            where = f"{self.path}, window {x0},{y0} to {x1},{y1}"
            raise UserError(f"{where}: cannot read: {reason(e)}.") from None


def _bands(raster: Any) -> list[int]:
    """Numbers, from 1, of the bands that are the picture."""
    from rasterio.enums import ColorInterp

    colours = list(raster.colorinterp)
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in colours for colour in wanted):
        bands = [colours.index(colour) + 1 for colour in wanted]
    else:
        bands = [k for k, colour in enumerate(colours, 1) if colour != ColorInterp.alpha]
    if len(bands) == 4:  # none of which is alpha
        raise ValueError(
            "expected grey or RGB, got 4 bands, none of them called red, green or blue. Name them"
        )
    check_bands(len(bands), raster.dtypes[bands[0] - 1] if bands else "no type")
    return bands


def _palette(raster: Any) -> np.ndarray | None:
    """Colours (256, 3) uint8 of the values of a band, if it has them."""
    from rasterio.enums import ColorInterp

    if raster.colorinterp[0] != ColorInterp.palette or raster.dtypes[0] != "uint8":
        return None
    colours = raster.colormap(1)
    return np.array([colours.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)
