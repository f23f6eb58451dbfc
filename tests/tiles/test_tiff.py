"""Windows of plain TIFF files: the pixels that `read_image` gives, of the blocks beneath them alone, without extras."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from maskrcnn.errors import UserError
from maskrcnn.images.read import read_image
from maskrcnn.tiles import gdal, micro
from maskrcnn.tiles.tiff import TiffWindows
from maskrcnn.tiles.windows import ArrayWindows, open_windows

tifffile = pytest.importorskip("tifffile")  # writes them
WINDOWS = [(0, 0, 230, 170), (37, 61, 203, 169), (229, 169, 230, 170)]


@pytest.fixture(autouse=True)
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdal, "has_gdal", lambda: False)
    monkeypatch.setattr(micro, "has_micro", lambda: False)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """170 x 230 pixels that go up and down slowly enough for JPEG."""
    y, x = np.mgrid[:170, :230]
    return np.stack([y + x // 4, x, 255 - y], -1).astype(np.uint8)


def write(path: Path, picture: np.ndarray, **options: object) -> Path:
    photometric = options.pop("photometric", "rgb" if picture.ndim == 3 else "minisblack")
    tifffile.imwrite(path, picture, photometric=photometric, **options)
    return path


@pytest.mark.parametrize("layout", [{"tile": (64, 48)}, {"rowsperstrip": 37}, {}], ids=str)
@pytest.mark.parametrize("compression", [None, "zlib", "lzma", "packbits", "zstd", "lzw", "jpeg"])
def test_windows_are_the_pixels_of_the_whole(picture, tmp_path, compression, layout):
    try:
        path = write(tmp_path / "slide.tif", picture, compression=compression, **layout)
    except Exception as e:
        pytest.skip(f"tifffile cannot write it without imagecodecs: {e}")
    windows, whole = open_windows(path), read_image(path)
    assert isinstance(windows, TiffWindows)
    assert windows.size == windows.full_size == (170, 230)
    for x0, y0, x1, y1 in WINDOWS:
        np.testing.assert_array_equal(windows.read(x0, y0, x1, y1), whole[y0:y1, x0:x1])
        assert windows.missing(x0, y0, x1, y1) is None
    if compression != "jpeg":
        np.testing.assert_array_equal(whole, picture)


@pytest.mark.parametrize("options", [{"byteorder": ">"}, {"bigtiff": True}, {"predictor": True}], ids=str)
@pytest.mark.parametrize("is_deep", [False, True])
@pytest.mark.parametrize("is_grey", [False, True])
def test_depths_byte_orders_and_predictors(picture, tmp_path, options, is_deep, is_grey):
    pixels = picture[..., 0] if is_grey else picture
    pixels = pixels.astype(np.uint16) * 257 if is_deep else pixels
    path = write(tmp_path / "slide.tif", pixels, compression="zlib", tile=(64, 64), **options)
    windows = open_windows(path)
    assert isinstance(windows, TiffWindows)
    expected = picture[..., :1] if is_grey else picture
    for x0, y0, x1, y1 in WINDOWS:
        wanted = np.broadcast_to(expected[y0:y1, x0:x1], (y1 - y0, x1 - x0, 3))
        np.testing.assert_array_equal(windows.read(x0, y0, x1, y1), wanted)


def test_a_palette_and_alpha_are_read_as_in_a_photograph(picture, tmp_path):
    colours = np.random.default_rng(0).integers(0, 65535, (3, 256), np.uint16)
    with_alpha = np.concatenate([picture, picture[..., :1]], -1)
    for path in (
        write(tmp_path / "a.tif", picture[..., 0], photometric="palette", colormap=colours, tile=(64, 64)),
        write(tmp_path / "b.tif", with_alpha, extrasamples=["unassalpha"], tile=(64, 64)),
    ):
        windows = open_windows(path)
        assert isinstance(windows, TiffWindows)
        np.testing.assert_array_equal(windows.read(37, 61, 203, 169), read_image(path)[61:169, 37:203])


def test_one_strip_without_compression_is_read_by_rows(tmp_path):
    wide = np.random.default_rng(0).integers(0, 255, (600, 3000, 3), np.uint8)
    windows = open_windows(write(tmp_path / "slide.tif", wide))
    assert isinstance(windows, TiffWindows)
    assert windows.block == (2**20 // 9000, 3000)
    np.testing.assert_array_equal(windows.read(100, 90, 2900, 599), wide[90:599, 100:2900])


def test_blocks_that_were_never_written_are_black(picture, tmp_path):
    tiles = iter([picture[:64, :64], None, picture[:64, 128:192], *[None] * 9])
    tifffile.imwrite(
        tmp_path / "sparse.tif", tiles, shape=picture.shape, dtype=np.uint8, tile=(64, 64), photometric="rgb"
    )
    windows = open_windows(tmp_path / "sparse.tif")
    assert isinstance(windows, TiffWindows)
    window = windows.read(0, 0, 192, 128)
    np.testing.assert_array_equal(window[:64, :64], picture[:64, :64])
    np.testing.assert_array_equal(window[:64, 128:], picture[:64, 128:192])
    assert not window[:64, 64:128].any()
    assert not window[64:].any()


def test_a_block_is_decoded_once_for_the_tiles_beside_each_other(picture, tmp_path, monkeypatch):
    windows = open_windows(write(tmp_path / "slide.tif", picture, compression="zlib", rowsperstrip=50))
    decoded = []
    monkeypatch.setattr(
        "maskrcnn.tiles.tiff.read_image", lambda file: decoded.append(file) or read_image(file)
    )
    for x0, x1 in pairwise(range(0, 231, 23)):
        np.testing.assert_array_equal(windows.read(x0, 20, x1, 170), picture[20:170, x0:x1])
    assert len(decoded) == 4


@pytest.mark.parametrize("options", [{"planarconfig": "separate"}, {"extratags": [(274, 3, 1, 3)]}], ids=str)
def test_bands_apart_and_turned_pictures_are_read_as_a_whole(picture, tmp_path, options):
    pixels = np.moveaxis(picture, 2, 0) if "planarconfig" in options else picture
    path = write(tmp_path / "slide.tif", pixels, **options)
    windows = open_windows(path)
    assert isinstance(windows, ArrayWindows)
    turned = picture if "planarconfig" in options else picture[::-1, ::-1]  # orientation 3: by 180 degrees
    np.testing.assert_array_equal(windows.read(0, 0, 230, 170), turned)


def test_a_file_that_is_cut_off_says_which_window(tmp_path):
    path = write(tmp_path / "grey.tif", np.full((200, 100), 65535, np.uint16), rowsperstrip=10)
    assert (open_windows(path).read(5, 5, 50, 190) == 255).all()
    path.write_bytes(path.read_bytes()[:-9000])
    windows = open_windows(path)
    assert (windows.read(0, 0, 100, 50) == 255).all()
    with pytest.raises(
        UserError, match=r"grey\.tif, window 0,90 to 100,200: cannot read: the file is cut off"
    ):
        windows.read(0, 90, 100, 200)


def test_a_damaged_block_says_which_window(picture, tmp_path):
    path = write(tmp_path / "slide.tif", picture, compression="zlib", rowsperstrip=20)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[3]  # pyright: ignore[reportAttributeAccessIssue]
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    windows = open_windows(path)
    np.testing.assert_array_equal(windows.read(0, 0, 230, 60), picture[:60])
    with pytest.raises(UserError, match=r"slide\.tif, window 0,60 to 9,70: cannot read"):
        windows.read(0, 60, 9, 70)


def test_without_the_extra_it_is_the_first_page(picture, tmp_path):
    channels = np.moveaxis(picture, 2, 0)
    tifffile.imwrite(tmp_path / "cells.ome.tif", channels, metadata={"axes": "CYX"}, ome=True, tile=(64, 64))
    window = open_windows(tmp_path / "cells.ome.tif").read(0, 0, 230, 170)
    np.testing.assert_array_equal(window, picture[..., :1].repeat(3, 2))


def test_a_level_needs_the_extra(picture, tmp_path):
    path = write(tmp_path / "slide.tif", picture)
    with pytest.raises(UserError, match=r"tifffile and zarr for level 1.*pip install 'maskrcnn\[micro\]'"):
        open_windows(path, 1)


@pytest.mark.parametrize(
    ("level", "message"), [(2, "expected level 0, the only one"), (-1, "level: expected")]
)
def test_a_photograph_has_one_level(picture, level, message):
    with pytest.raises(UserError, match=message):
        open_windows(picture, level)
