"""Bands of files keep their depth, and what differs from the model is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.config import InputConfig
from maskrcnn.errors import UserError
from maskrcnn.images.bands import BandsFile, check_band_files, read_bands, read_input, shown, stretched
from maskrcnn.images.resize import resize_image

FOUR = InputConfig(channels=4)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (20, 30, 4), dtype=np.uint16)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "form", ["hwc.npy", "chw.npy", "planes.tif", "samples.tif", "big_endian.tif", "pages.tif"]
)
def test_every_form_of_a_file_gives_its_values_in_its_depth(
    pixels: np.ndarray, tmp_path: Path, form: str, dtype: str
) -> None:
    path, pixels = tmp_path / form, (pixels / 257).astype(dtype)
    planes = pixels.transpose(2, 0, 1)
    if form.endswith("npy"):
        np.save(path, pixels if form == "hwc.npy" else planes)
    else:
        tifffile = pytest.importorskip("tifffile")
        if form == "samples.tif":
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
        elif form == "pages.tif":
            with tifffile.TiffWriter(path) as file:
                for plane in planes:
                    file.write(plane, contiguous=True)
        else:
            order = ">" if form == "big_endian.tif" else "<"
            tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate", byteorder=order)
    found = read_bands(path, FOUR)
    assert found.dtype == dtype
    assert np.array_equal(found, pixels)


def test_grey_png_keeps_its_16_bits(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    found = read_bands(tmp_path / "grey.png", InputConfig(channels=1))
    assert np.array_equal(found, pixels[..., :1])


def test_open_files_are_read_like_paths(pixels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels)
    with open(tmp_path / "a.npy", "rb") as file:
        assert np.array_equal(read_bands(file, FOUR), pixels)


def test_several_files_are_one_image(pixels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "nir").mkdir()
    for k, name in enumerate(("7_red.png", "7_green.png", "nir/7.png")):
        Image.fromarray(pixels[..., k]).save(tmp_path / name)
    config = InputConfig(channels=3, band_files=("*_red.png", "*_green.png", "nir/*.png"))
    assert np.array_equal(read_bands(tmp_path / "7_red.png", config), pixels[..., :3])
    with pytest.raises(UserError, match=r"7_green.png: expected a name like \*_red.png"):
        read_bands(tmp_path / "7_green.png", config)
    Image.fromarray(pixels[:10, :, 0]).save(tmp_path / "7_green.png")
    with pytest.raises(
        UserError, match=r"7_green.png: expected 20 x 30 pixels of uint16 as in .*7_red.png, got 10 x"
    ):
        read_bands(tmp_path / "7_red.png", config)
    (tmp_path / "nir/7.png").unlink()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "7_green.png")
    with pytest.raises(UserError, match=r"nir/7.png: cannot read the bands: No such file"):
        read_bands(tmp_path / "7_red.png", config)


@pytest.mark.parametrize(
    "patterns", [("a*.tif",), ("a*.tif", "b.tif"), ("a*.tif", "b**.tif"), ("x/*.tif", "*.tif")]
)
def test_patterns_that_do_not_fit_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^model.input.band_files: expected [^\n]+$"):
        check_band_files(InputConfig(channels=2, band_files=patterns))


def test_bands_that_differ_from_the_model_are_one_line(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, pixels)
    with pytest.raises(UserError, match=r"^[^\n]*a.npy: expected 5 bands \(model.input.channels\)[^\n]*$"):
        read_bands(path, InputConfig(channels=5))
    with pytest.raises(UserError, match=r"a.npy: expected bands of uint8, got uint16"):
        read_bands(path, replace(FOUR, depth="uint8"))
    np.save(path, pixels.astype(np.int32))
    with pytest.raises(UserError, match=r"a.npy: expected bands of uint8 or uint16 or float32, got int32"):
        read_bands(path, FOUR)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"a.npy: cannot read the bands"):
        read_bands(path, FOUR)


def test_too_large_a_file_is_refused_before_it_is_read(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", pixels)
    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "599")
    with pytest.raises(UserError, match="20 x 30 pixels are more than the limit of 599"):
        read_bands(tmp_path / "a.npy", FOUR)


def test_16_bit_colours_of_a_png_are_not_read_with_8(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(UserError, match="colour PNG of 16 bits"):
        read_bands(tmp_path / "deep.png", InputConfig(channels=3))


def test_stretch_maps_each_range_to_0_to_255_and_keeps_steps_of_16_bits() -> None:
    bands = np.array([[[100, 0], [150, 1], [200, 65535], [201, 500]]], np.uint16)
    config = InputConfig(channels=2, stretch=((100.0, 200.0), (0.0, 1000.0)))
    expected = [[[0, 0], [127.5, 0.255], [255, 255], [255, 127.5]]]
    np.testing.assert_allclose(stretched(bands, config), expected, rtol=1e-6)
    holes = np.array([[[np.nan, np.inf], [150.0, -np.inf]]], np.float32)
    assert stretched(holes, config).tolist() == [[[0, 255], [127.5, 0]]]


def test_without_a_stretch_the_depth_is_the_range() -> None:
    full = {"uint8": 255, "uint16": 65535, "float32": 1}
    for dtype, largest in full.items():
        assert stretched(np.array([[[largest]]], dtype), InputConfig(channels=1)).tolist() == [[[255]]]


def test_people_see_the_chosen_bands(pixels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels)
    seen = np.rint(read_input(tmp_path / "a.npy", FOUR)).astype(np.uint8)
    for bands, expected in (((), [0, 1, 2]), ((3, 0, 2), [3, 0, 2]), ((2,), [2, 2, 2])):
        config = replace(FOUR, shown_bands=bands)
        assert np.array_equal(BandsFile(tmp_path / "a.npy", config).pixels(), seen[..., expected])
    two = InputConfig(channels=2)
    assert np.array_equal(shown(stretched(pixels[..., :2], two), two), seen[..., [0, 0, 0]])


def test_bands_are_resized_each_by_itself_as_pillow_does() -> None:
    image = np.random.default_rng(0).random((33, 47, 5), dtype=np.float32)
    for resize in ("pillow", "opencv"):
        found = resize_image(image, (20, 61), resize)
        assert found.dtype == np.float32
        for k in range(5):
            one = Image.fromarray(image[..., k]).resize((61, 20), Image.Resampling.BILINEAR)
            assert np.array_equal(found[..., k], np.asarray(one))
