"""Rasters by GDAL: windows, overviews, places without data, and what cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.errors import UserError
from maskrcnn.masks.rle import rle_decode
from maskrcnn.predict import predict_tiled
from maskrcnn.structures import Instances
from maskrcnn.tiles.raster import RasterWindows
from maskrcnn.tiles.tiff import TiffWindows
from maskrcnn.tiles.windows import open_windows
from tests.tiles.test_tiled import ExactMasks, Nothing

rasterio = pytest.importorskip("rasterio")
CRS, TRANSFORM = "EPSG:32633", (0.5, 0, 500_000, 0, -0.5, 5_000_000)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """200 x 300 pixels, none of them black."""
    return np.random.default_rng(0).integers(1, 255, (200, 300, 3), np.uint8)


def write(path: Path, picture: np.ndarray, overviews: tuple[int, ...] = (), **options: object) -> Path:
    """Write a GeoTIFF of (H, W, bands)."""
    given = {"crs": CRS, "transform": rasterio.Affine(*TRANSFORM), "photometric": "rgb"}
    given |= {"tiled": True, "blockxsize": 64, "blockysize": 64, **options}
    height, width, count = picture.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=picture.dtype, **given
    ) as file:
        file.write(picture.transpose(2, 0, 1))
        if overviews:
            file.build_overviews(overviews, rasterio.enums.Resampling.nearest)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"compress": "deflate", "predictor": 2}, {"interleave": "band"}], ids=str
)
@pytest.mark.parametrize("is_deep", [False, True])
def test_windows_are_the_pixels(picture, tmp_path, options, is_deep):
    pixels = picture.astype(np.uint16) * 257 if is_deep else picture
    windows = open_windows(write(tmp_path / "ortho.tif", pixels, **options))
    assert isinstance(windows, RasterWindows)
    assert windows.size == windows.full_size == (200, 300)
    for x0, y0, x1, y1 in [(0, 0, 300, 200), (37, 61, 203, 189), (299, 199, 300, 200)]:
        np.testing.assert_array_equal(windows.read(x0, y0, x1, y1), picture[y0:y1, x0:x1])
        assert windows.missing(x0, y0, x1, y1) is None


def test_levels_are_the_overviews(picture, tmp_path):
    path = write(tmp_path / "ortho.tif", picture, (2, 4))
    for level in range(3):
        windows = open_windows(path, level)
        assert windows.size == (200 // 2**level, 300 // 2**level)
        assert windows.full_size == (200, 300)
        with rasterio.open(path) as file:
            expected = file.read(out_shape=(3, *windows.size)).transpose(1, 2, 0)
        np.testing.assert_array_equal(windows.read(5, 7, 70, 50), expected[7:50, 5:70])
    with pytest.raises(UserError, match=r"ortho\.tif: expected a level from 0 to 2, got 3\."):
        open_windows(path, 3)


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
def test_without_data_it_is_black_and_told(picture, tmp_path, how):
    valid = np.ones((200, 300), bool)
    valid[50:120, 200:] = False
    pixels = np.where(valid[..., None], picture, 7)
    path = tmp_path / "ortho.tif"
    if how == "nodata":
        pixels[0, 0] = 7, 8, 9  # one band of it is
        write(path, pixels, nodata=7)
    elif how == "alpha":
        write(path, np.dstack([pixels, 255 * valid]).astype(np.uint8), alpha="yes")
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write(path, pixels)
            with rasterio.open(path, "r+") as file:
                file.write_mask(valid)
    windows = open_windows(path)
    missing, window = windows.missing(150, 40, 300, 160), windows.read(150, 40, 300, 160)
    assert missing is not None
    np.testing.assert_array_equal(missing, ~valid[40:160, 150:])
    np.testing.assert_array_equal(window, np.where(missing[..., None], 0, pixels[40:160, 150:]))
    first = windows.missing(0, 0, 2, 2)
    assert first is not None
    assert not first.any()


class OneObject:
    """Finds one object, all of the window, and counts the windows."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, window: np.ndarray) -> Instances:
        self.calls += 1
        height, width = window.shape[:2]
        return Instances(
            (height, width),
            torch.tensor([[0.0, 0.0, width, height]]),
            torch.tensor([0.9]),
            torch.tensor([0]),
            ExactMasks([np.ones((height, width), bool)]),  # pyright: ignore[reportArgumentType]
        )


def test_nothing_is_found_where_there_are_no_data(picture, tmp_path):
    pixels = picture.copy()
    pixels[:, 140:] = 0
    pixels[:10] = 0
    model = OneObject()
    found = predict_tiled(model, write(tmp_path / "ortho.tif", pixels, nodata=0), 100, 20)
    assert model.calls == 6  # of twelve tiles, six have data
    covered = sum(rle_decode(rle).astype(bool) for rle in found.rles)
    np.testing.assert_array_equal(covered > 0, pixels.any(-1))
    assert found.boxes.min(0).tolist()[:2] == [0, 10]
    assert found.boxes.max(0).tolist()[2:] == [140, 200]


def test_bands_by_their_colours(picture, tmp_path):
    colours = rasterio.enums.ColorInterp
    path = write(tmp_path / "five.tif", picture[..., [1, 0, 0, 2, 1]], photometric="minisblack")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [colours.undefined, colours.red, colours.undefined, colours.blue, colours.green]
    np.testing.assert_array_equal(open_windows(path).read(0, 0, 300, 200), picture)


def test_a_palette_gives_its_colours(picture, tmp_path):
    colours = np.random.default_rng(1).integers(0, 255, (256, 3), np.uint8)
    path = write(tmp_path / "map.tif", picture[..., :1], photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {k: (*map(int, c), 255) for k, c in enumerate(colours)})
    np.testing.assert_array_equal(open_windows(path).read(5, 6, 90, 80), colours[picture[6:80, 5:90, 0]])


@pytest.mark.parametrize(
    ("bands", "kind", "message"),
    [
        (1, np.float32, "expected grey or RGB of 8 or 16 bits, got 1 band of float32"),
        (7, np.uint8, "expected grey or RGB of 8 or 16 bits, got 7 bands of uint8"),
        (4, np.uint16, "expected grey or RGB, got 4 bands, none of them called red"),
    ],
)
def test_other_bands_are_refused_in_one_line(tmp_path, bands, kind, message):
    path = write(tmp_path / "dem.tif", np.ones((64, 64, bands), kind), photometric="minisblack")
    with pytest.raises(UserError, match=rf"dem\.tif: {message}"):
        open_windows(path)


def test_a_tiff_without_a_place_is_no_matter_for_gdal(picture, tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = write(tmp_path / "scan.tif", picture, crs=None, transform=None)
    assert isinstance(open_windows(path), TiffWindows)


def test_other_files_that_gdal_reads(picture, tmp_path):
    from rasterio.shutil import copy

    with rasterio.open(write(tmp_path / "ortho.tif", picture)) as file:
        copy(file, tmp_path / "ortho.img", driver="HFA")
    np.testing.assert_array_equal(
        open_windows(tmp_path / "ortho.img").read(5, 6, 90, 80), picture[6:80, 5:90]
    )


def test_an_unreadable_window_is_one_line_and_finished_tiles_are_kept(picture, tmp_path):
    path = write(tmp_path / "ortho.tif", picture)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20_000])  # the last tiles are gone
    first, again = Nothing(), Nothing()
    for model in (first, again):
        with pytest.raises(
            UserError, match=r"ortho\.tif, window 160,100 to 260,200: cannot read: "
        ) as caught:
            predict_tiled(model, path, 100, 20, keep=tmp_path / "kept")
        assert "\n" not in str(caught.value)
    assert (first.calls, again.calls) == (10, 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
def test_a_raster_of_5_gigabytes_is_read_in_little_memory(tmp_path):
    path = tmp_path / "large.tif"
    options = {
        "crs": CRS,
        "transform": rasterio.Affine(*TRANSFORM),
        "photometric": "rgb",
        "compress": "deflate",
        "SPARSE_OK": True,
    }
    options |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", height=40_000, width=40_000, count=3, **options) as file:
        for k in range(0, 39_000, 4096):
            file.write(np.full((3, 512, 512), 9, np.uint8), window=((k, k + 512), (k, k + 512)))
    code = """
import sys
from maskrcnn.tiles.windows import open_windows

def mebibytes(what):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(what))
    return int(line.split()[1]) // 1024

picture = open_windows(sys.argv[1])
before, total, most = mebibytes("VmRSS"), 0, 0
for k in range(0, 39_000, 1024):
    total += int(picture.read(k, k, k + 1024, k + 1024).sum())
    most = max(most, mebibytes("VmRSS"))
print(picture.size, total, most - before)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    size, total, mebibytes = done.stdout.replace(", ", ",").split()
    assert (size, int(total)) == ("(40000,40000)", 10 * 512 * 512 * 3 * 9)
    assert int(mebibytes) < 400  # of windows, and GDAL's cache of 128 MB; all of it is 4,578 MiB
