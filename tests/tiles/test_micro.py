"""Slides, OME-TIFF and Zarr: windows of their levels, channels and planes, by tifffile and zarr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskrcnn.errors import UserError
from maskrcnn.predict import find_images, predict_tiled
from maskrcnn.tiles.micro import ChunkWindows
from maskrcnn.tiles.windows import open_windows
from tests.tiles.test_tiled import Nothing

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:400, :500]
    return np.stack([y // 2 + x // 4, x // 2, 255 - y // 2], -1).astype(np.uint8)


def pyramid(path: Path, picture: np.ndarray, compression: str = "zlib") -> Path:
    options = {"tile": (64, 64), "photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as file:
        file.write(picture, subifds=2, **options)
        file.write(picture[::2, ::2], subfiletype=1, **options)
        file.write(picture[::4, ::4], subfiletype=1, **options)
    return path


@pytest.mark.parametrize("name", ["slide.ome.tif", "slide.tif"])
def test_levels_of_a_pyramid(picture, tmp_path, name):
    path = pyramid(tmp_path / name, picture)
    for level in range(3):
        windows, pixels = open_windows(path, level), picture[:: 2**level, :: 2**level]
        assert windows.size == pixels.shape[:2]
        assert windows.full_size == (400, 500)
        np.testing.assert_array_equal(windows.read(13, 21, 90, 100), pixels[21:100, 13:90])
        assert windows.missing(13, 21, 90, 100) is None
    with pytest.raises(UserError, match=r"slide.*tif: expected a level from 0 to 2, got 3\."):
        open_windows(path, 3)


def test_levels_in_jpeg(picture, tmp_path):
    pytest.importorskip("imagecodecs")
    path = pyramid(tmp_path / "slide.ome.tif", picture, "jpeg")
    window = open_windows(path, 1).read(13, 21, 90, 100)
    # Every second pixel of something this smooth: 8 of 255 is JPEG's, not another place's.
    assert np.abs(window.astype(int) - picture[42:200:2, 26:180:2]).max() <= 8


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_three_channels_in_pages_of_their_own_are_colours(picture, tmp_path, kind):
    channels = np.moveaxis(picture, 2, 0).astype(kind) * (257 if kind == np.uint16 else 1)
    stack = np.stack([channels, 0 * channels])  # the second in depth is not looked at
    tifffile.imwrite(tmp_path / "cells.ome.tif", stack, metadata={"axes": "ZCYX"}, ome=True, tile=(64, 64))
    windows = open_windows(tmp_path / "cells.ome.tif")
    assert isinstance(windows, ChunkWindows)
    np.testing.assert_array_equal(windows.read(13, 21, 490, 300), picture[21:300, 13:490])


def test_other_channels_are_refused_in_one_line(picture, tmp_path):
    channels = np.moveaxis(picture[..., [0, 1, 2, 0, 1]], 2, 0)
    tifffile.imwrite(tmp_path / "cells.ome.tif", channels, metadata={"axes": "CYX"}, ome=True, tile=(64, 64))
    with pytest.raises(UserError, match="expected grey or RGB of 8 or 16 bits, got 5 bands of uint8"):
        open_windows(tmp_path / "cells.ome.tif")


def ome_zarr(path: Path, picture: np.ndarray, version: int) -> Path:
    """OME-Zarr 0.4 (Zarr 2) or 0.5 (Zarr 3) of three levels, with axes t c z y x."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for k in range(3):
        level = np.moveaxis(picture, 2, 0)[None, :, None, :: 2**k, :: 2**k]
        group.create_array(str(k), data=level, chunks=(1, 1, 1, 64, 64))
    scales = [
        {"axes": [{"name": n} for n in "tczyx"], "datasets": [{"path": str(k)} for k in range(3)]},
    ]
    group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}})
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_levels_of_ome_zarr(picture, tmp_path, version):
    path = ome_zarr(tmp_path / "cells.ome.zarr", picture, version)
    assert find_images([path]) == [path]
    for level in range(3):
        windows, pixels = open_windows(path, level), picture[:: 2**level, :: 2**level]
        assert windows.size == pixels.shape[:2]
        assert windows.full_size == (400, 500)
        np.testing.assert_array_equal(windows.read(13, 21, 90, 100), pixels[21:100, 13:90])
    with pytest.raises(UserError, match=r"cells\.ome\.zarr: expected a level from 0 to 2, got 3\."):
        open_windows(path, 3)


@pytest.mark.parametrize("is_grey", [False, True])
def test_a_zarr_array_by_its_shape(picture, tmp_path, is_grey):
    pixels = picture[..., 0] if is_grey else picture
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(64, 64, 3)[: pixels.ndim])
    window = open_windows(tmp_path / "a.zarr").read(13, 21, 90, 100)
    expected = pixels[21:100, 13:90]
    np.testing.assert_array_equal(window, expected[..., None].repeat(3, 2) if is_grey else expected)


def test_zarr_that_is_no_picture_is_refused_in_one_line(tmp_path):
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    with pytest.raises(UserError, match=r"g\.zarr: expected a Zarr array or OME-Zarr, got another group\."):
        open_windows(tmp_path / "g.zarr")
    zarr.create_array(tmp_path / "f.zarr", data=np.zeros((9, 9), np.float32))
    with pytest.raises(UserError, match=r"f\.zarr: expected grey or RGB .* got 1 band of float32"):
        open_windows(tmp_path / "f.zarr")
    zarr.create_array(tmp_path / "s.zarr", data=np.zeros((2, 2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"s\.zarr: expected an array \(H, W\) or \(H, W, bands\), got"):
        open_windows(tmp_path / "s.zarr")


def test_a_damaged_chunk_is_one_line_and_finished_tiles_are_kept(picture, tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=picture, chunks=(128, 128, 3))
    chunk = path / "c" / "3" / "3" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"damaged")
    first, again = Nothing(), Nothing()
    with pytest.raises(UserError, match=r"a\.zarr, window 288,272 to 416,400: cannot read: "):
        predict_tiled(first, path, 128, 32, keep=tmp_path / "kept")
    chunk.write_bytes(whole)
    predict_tiled(again, path, 128, 32, keep=tmp_path / "kept")
    assert (first.calls, again.calls) == (18, 2)
