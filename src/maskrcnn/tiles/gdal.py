"""GDAL by rasterio (extra `geo`): files opened quietly, with a bounded cache, errors as one reason."""

from __future__ import annotations

import os
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError, one_line

_CACHE = "GDAL_CACHEMAX"  # by itself GDAL takes a twentieth of the machine's memory for decoded blocks
_CACHED = 2**27  # bytes
_OPENING = threading.Lock()  # what warns is the whole process's


def has_gdal() -> bool:
    """Return True if rasterio is installed."""
    return find_spec("rasterio") is not None


def check_gdal(what: str) -> None:
    """Make sure that rasterio is installed.

    Raises:
        UserError: it is not; the message begins with `what`.
    """
    if not has_gdal():
        raise UserError(f"{what}: expected the package rasterio, got none. Run: pip install 'maskrcnn[geo]'")


def gdal() -> Any:
    """Context manager in which GDAL is to be used."""
    import rasterio

    options: dict[str, Any] = {} if _CACHE in os.environ else {_CACHE: _CACHED}
    return rasterio.Env(**options)


def open_gdal(path: Path, **options: Any) -> Any | None:
    """Open a raster as `rasterio.open` does; None for a file that GDAL does not know."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    with _OPENING, warnings.catch_warnings(), gdal():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            return rasterio.open(path, **options)
        except RasterioIOError:
            return None


def is_placed(raster: Any) -> bool:
    """Return True for a raster with a CRS or other coordinates than its pixels'."""
    return raster.crs is not None or not raster.transform.is_identity or bool(raster.gcps[0])


def reason(error: BaseException) -> str:
    """First words of GDAL about an error, in one line: rasterio's own only point at them."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "errmsg", "") or str(error) or type(error).__name__
    return one_line(text).rstrip(".")
