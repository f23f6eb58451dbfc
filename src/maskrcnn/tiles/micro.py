"""Windows of microscopy's pictures by tifffile and zarr (extra `micro`): OME-TIFF, slides, Zarr, with their levels.

Both give an array with named axes, of which the chunks beneath a window are decoded. Channels are colours if there are
three of them; of a stack or a series in time the first plane is taken, as `images.read` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.errors import UserError, one_line
from maskrcnn.images.depth import check_bands, to_rgb8


def has_micro() -> bool:
    """Return True if tifffile and zarr are installed."""
    return find_spec("tifffile") is not None and find_spec("zarr") is not None


def check_micro(path: Path, what: str) -> None:
    """Make sure that tifffile and zarr are installed.

    Raises:
        UserError: one is not.
    """
    if not has_micro():
        raise UserError(
            f"{path}: expected tifffile and zarr for {what}, got none. Run: pip install 'maskrcnn[micro]'"
        )


def open_slide(path: Path, level: int = 0) -> ChunkWindows:
    """Open the first series of a TIFF file, as tifffile finds it.

    Raises:
        UserError: the file cannot be read, lacks the level, or has other bands or another type than a picture.
    """
    import tifffile
    import zarr

    try:
        with tifffile.TiffFile(path) as file:
            levels = file.series[0].levels
            _check_level(path, level, len(levels))
            axes, full = levels[level].axes, levels[0]
            full_size = (full.shape[full.axes.index("Y")], full.shape[full.axes.index("X")])
        store: Any = tifffile.imread(path, series=0, level=level, aszarr=True)
        try:
            slide = ChunkWindows(path, zarr.open(store, mode="r"), axes.lower().replace("s", "c"), full_size)
        except BaseException:
            store.close()
            raise
        weakref.finalize(slide, store.close)  # its file, with the last one who reads it
        return slide
    except UserError:
        raise
    except Exception as e:  # a corrupt file raises nearly anything
        raise UserError(f"{path}: cannot read: {_reason(e)}.") from None


def open_zarr(path: Path, level: int = 0) -> ChunkWindows:
    """Open a Zarr array, or the levels of OME-Zarr in a group.

    Raises:
        UserError: it is neither, cannot be read, lacks the level, or has other bands or another type than a picture.
    """
    check_micro(path, "Zarr")
    import zarr

    try:
        store: Any = zarr.open(path, mode="r")
        if isinstance(store, zarr.Array):
            levels, axes = [store], _axes_of(store)
        else:
            about = dict(store.attrs)
            (scales, *_) = about.get("ome", about)["multiscales"]
            levels = [store[level["path"]] for level in scales["datasets"]]
            axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales.get("axes", "tczyx")]
        _check_level(path, level, len(levels))
        y, x = axes.index("y"), axes.index("x")
        return ChunkWindows(path, levels[level], axes, (levels[0].shape[y], levels[0].shape[x]))
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{path}: expected a Zarr array or OME-Zarr, got another group.") from None
    except Exception as e:
        raise UserError(f"{path}: cannot read: {_reason(e)}.") from None


class ChunkWindows:
    """Windows of an array of chunks.

    axes: what each axis of the array is: y, x, c for bands; of any other the first plane is taken.

    Raises:
        UserError: bands or a type that are no picture's.
    """

    def __init__(self, path: Path, array: Any, axes: Sequence[str], full_size: tuple[int, int]) -> None:
        self.path, self.array, self.full_size = path, array, full_size
        # Of two axes for bands, as channels of colours each, the last that has several.
        bands = [k for k, axis in enumerate(axes) if axis == "c" and array.shape[k] > 1]
        self.axes = ["c" if k in bands[-1:] else a if a in "yx" else "" for k, a in enumerate(axes)]
        self.size = (array.shape[self.axes.index("y")], array.shape[self.axes.index("x")])
        try:
            check_bands(array.shape[bands[-1]] if bands else 1, str(array.dtype))
        except ValueError as e:
            raise UserError(f"{path}: {e}.") from None

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        wanted = {"y": slice(y0, y1), "x": slice(x0, x1), "c": slice(None), "": 0}
        try:
            window = np.asarray(self.array[tuple(wanted[axis] for axis in self.axes)])
        except Exception as e:
            where = f"{self.path}, window {x0},{y0} to {x1},{y1}"
            raise UserError(f"{where}: cannot read: {_reason(e)}.") from None
        left = [axis for axis in self.axes if axis]
        if "c" not in left:
            window, left = window[..., None], [*left, "c"]
        return to_rgb8(window.transpose([left.index(axis) for axis in "yxc"]))

    def missing(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray | None:
        return None


def _axes_of(array: Any) -> list[str]:
    """Axes of a Zarr array by their names, or by its shape: (H, W) or (H, W, bands)."""
    names = getattr(array.metadata, "dimension_names", None)
    if names and all(names):
        return [name.lower() for name in names]
    if array.ndim not in (2, 3):
        raise UserError(f"{array.store_path}: expected an array (H, W) or (H, W, bands), got {array.shape}.")
    return ["y", "x", "c"][: array.ndim]


def _check_level(path: Path, level: int, count: int) -> None:
    if level >= count:
        raise UserError(f"{path}: expected a level from 0 to {count - 1}, got {level}.")


def _reason(error: Exception) -> str:
    return one_line(str(error)).rstrip(".") or type(error).__name__
