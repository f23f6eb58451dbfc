"""Image files mean the same pixels whoever decodes them; broken ones are named in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskrcnn.errors import UserError
from maskrcnn.images import read as image_io
from maskrcnn.images.read import image_size, read_image
from maskrcnn.images.resize import resize_image, resize_size

HEIGHT, WIDTH = 40, 56


def picture() -> Image.Image:
    """Smooth picture without symmetry, so that every wrong turn shows."""
    ramp = np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 2)
    return Image.fromarray(np.clip(ramp[..., None] + np.array([0, 20, 10]), 0, 255).astype(np.uint8))


def saved(folder: Path, name: str, image: Image.Image, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, decoder, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    path = saved(tmp_path, f"a.{suffix}", picture(), exif=exif, **options)
    tagged = picture()
    tagged.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    got = read_image(path)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= (4 if suffix == "jpg" else 0)
    assert image_size(path) == expected.shape[:2]


def test_grey_is_repeated(tmp_path, decoder):
    grey = picture().convert("L")
    for name in ("a.png", "a.bmp", "a.gif"):
        got = read_image(saved(tmp_path, name, grey))
        assert np.array_equal(got, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
        assert got.flags.writeable
        assert got.flags.c_contiguous


def test_one_bit_is_black_and_white(tmp_path, decoder):
    got = read_image(saved(tmp_path, "a.png", picture().convert("1")))
    assert set(np.unique(got)) == {0, 255}


def test_alpha_is_dropped(tmp_path, decoder):
    rgba = picture()
    rgba.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))))
    assert np.array_equal(read_image(saved(tmp_path, "a.png", rgba)), np.asarray(picture()))
    grey_alpha = Image.merge("LA", (picture().convert("L"), rgba.getchannel("A")))
    grey = np.asarray(picture().convert("L"))
    assert np.array_equal(read_image(saved(tmp_path, "b.png", grey_alpha))[..., 1], grey)


def test_palette_gives_its_colours(tmp_path, decoder):
    palette = picture().quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, "a.png", palette)), expected)
    transparent = saved(tmp_path, "b.png", palette, transparency=bytes(range(64)))
    assert np.array_equal(read_image(transparent), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257(tmp_path, decoder, suffix):
    values = np.add.outer(np.arange(HEIGHT) * 700, np.arange(WIDTH) * 680).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    got = read_image(saved(tmp_path, f"a.{suffix}", Image.fromarray(values)))
    assert np.array_equal(got[..., 0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(got[..., 0], got[..., 2])


def test_float_pixels_are_refused(tmp_path):
    path = saved(tmp_path, "a.tif", picture().convert("F"))
    with pytest.raises(UserError, match=r"a\.tif: cannot read the image: its pixels are floats"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif"])
def test_first_of_several_images(tmp_path, decoder, suffix):
    frames = [picture().convert("L").convert("RGB"), picture().rotate(180)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    got = read_image(path)
    assert got.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(got.astype(int) - np.asarray(frames[0])).max() <= 3


def test_cmyk_jpeg_reads_the_same_with_both(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.jpg", picture().convert("CMYK"))
    first = read_image(path)
    monkeypatch.setattr(image_io, "_torchcodec_decoder", lambda: None)
    assert np.abs(first.astype(int) - read_image(path)).max() <= 1


def test_decoders_agree_on_photographs(shared, monkeypatch):
    paths = sorted((shared / "data" / "coco" / "val2017").glob("*.jpg"))[:8]
    paths += sorted((shared / "data" / "nuclei" / "val").glob("*.png"))[:4]
    assert paths
    fast = [read_image(p) for p in paths]
    monkeypatch.setattr(image_io, "_torchcodec_decoder", lambda: None)
    for path, image in zip(paths, fast, strict=True):
        assert np.abs(image.astype(int) - read_image(path)).max() <= 1
        assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_truncated_files_are_errors(tmp_path, decoder, suffix):
    whole = saved(tmp_path, f"whole.{suffix}", picture()).read_bytes()
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: cannot read the image: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "the file is empty"), (b"hello", "not an image"), (None, "No such file or directory")],
)
def test_files_that_are_no_images_are_named(tmp_path, decoder, content, why):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.jpg: cannot read the image: {why}"):
        read_image(path)


def test_folder_is_named(tmp_path):
    for function in (read_image, image_size):
        with pytest.raises(UserError, match="Is a directory"):
            function(tmp_path)


def test_sizes_of_the_original(shared):
    units = np.load(shared / "reference" / "detectron2" / "units.npz")
    for min_size in (800, 640):
        got = [resize_size(int(h), int(w), min_size, 1333) for h, w in units["resize/in_hw"]]
        assert np.array_equal(got, units[f"resize/out_{min_size}_1333"])


def test_extreme_shapes_keep_a_pixel():
    assert resize_size(1, 100_000, 800, 1333) == (1, 1333)


def test_resize_is_pillows_bilinear():
    image = np.asarray(picture())
    expected = np.asarray(picture().resize((31, 23), Image.Resampling.BILINEAR))
    assert np.array_equal(resize_image(image, (23, 31)), expected)
    assert resize_image(image, (HEIGHT, WIDTH)) is image


def test_import_needs_no_decoder():
    code = "import sys, maskrcnn.images.read; sys.exit('PIL' in sys.modules or 'torchcodec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
