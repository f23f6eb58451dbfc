"""Pictures that are not whole, too large, or made to do harm are refused in one line, before they cost anything."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from maskrcnn.errors import UserError
from maskrcnn.images import read as image_io
from maskrcnn.images.read import MAX_PIXELS, image_size, max_pixels, read_image, set_max_pixels
from tests.images.mutate_pictures import FORMS, cut, cut_and_closed, encoded, ended_in_zeros, made_pictures

NOISE, SMOOTH = made_pictures()


@pytest.fixture
def limit():
    """Restore the limit of pixels after the test."""
    yield
    set_max_pixels(None)


def read(data: bytes) -> np.ndarray:
    return read_image(io.BytesIO(data))


def refused(data: bytes, why: str = "cannot read the image: ") -> None:
    with pytest.raises(UserError, match=why):
        read(data)


class TestWhole:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("photo", [NOISE, SMOOTH], ids=["noise", "smooth"])
    def test_a_whole_file_is_read(self, decoder, form, photo):
        data = encoded(photo, form)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(read(data) - expected).max() <= 1

    @pytest.mark.parametrize("form", FORMS)
    def test_a_cut_file_is_refused(self, decoder, form):
        rng = random.Random(0)
        for _ in range(5):
            refused(cut(encoded(NOISE, form), rng))

    @pytest.mark.parametrize("form", sorted(set(FORMS) - {"bmp", "tif"}))  # there zeros are black pixels
    def test_a_file_that_ends_in_zeros_is_refused(self, decoder, form):
        rng = random.Random(0)
        for _ in range(5):
            refused(ended_in_zeros(encoded(NOISE, form), rng))

    @pytest.mark.parametrize("form", ["jpg", "restart.jpg"])
    def test_a_jpeg_cut_and_closed_is_refused_wherever_it_was_cut(self, form):
        whole, rng = encoded(NOISE, form), random.Random(0)
        for _ in range(20):
            refused(cut_and_closed(whole, rng))
        end = len(whole) - 2
        refused(whole[: end - 150] + whole[end:], "truncated")

    def test_a_progressive_jpeg_without_its_last_scans_is_refused(self):
        whole = encoded(NOISE, "progressive.jpg")
        scans = [i for i in range(len(whole)) if whole.startswith(b"\xff\xda", i)]
        assert len(scans) > 5
        for start in scans[1:]:
            refused(whole[: start - 40] + b"\xff\xd9", "scans are missing|truncated|ends before")

    def test_a_progressive_jpeg_cut_in_its_last_scan_is_no_half_grey_image(self):
        whole = encoded(SMOOTH, "progressive.jpg")
        got = read(whole[: whole.rindex(b"\xff\xda") + 20] + b"\xff\xd9")
        assert np.abs(got.astype(int) - read(whole)).mean() < 5

    def test_bytes_behind_a_jpeg_are_no_part_of_it(self):
        whole = encoded(SMOOTH, "jpg")
        assert np.array_equal(read(whole + b"\xff\xd8 another, or a film" + bytes(1000)), read(whole))

    def test_a_thumbnail_within_a_jpeg_is_no_end(self):
        whole = encoded(SMOOTH, "jpg")
        inner = encoded(NOISE.resize((16, 16)), "jpg")
        segment = b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner
        assert np.array_equal(read(whole[:2] + segment + whole[2:]), read(whole))

    def test_a_wrong_checksum_of_a_png_is_refused(self, decoder):
        whole = bytearray(encoded(NOISE, "png"))
        whole[whole.index(b"IDAT") + 100] ^= 1
        refused(bytes(whole), "a checksum is wrong")

    def test_a_webp_that_is_one_colour_below_is_whole(self, decoder):
        """Encoders write such an end as zeros; those are needed."""
        pixels = np.full((400, 600, 3), 255, np.uint8)
        pixels[:200] = 90
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", quality=80, method=0)
        assert file.getvalue().rstrip(b"\0") != file.getvalue()[:-1]
        assert np.abs(read(file.getvalue()).astype(int) - pixels).max() < 20

    def test_files_of_the_cases(self, shared):
        folder = shared / "cases" / "images"
        if not folder.is_dir():
            pytest.skip("no cases")
        for name in ("half.jpg", "zeros.png"):
            with pytest.raises(UserError, match=name):
                read_image(folder / name)
        assert read_image(folder / "anim400.webp").shape == (1080, 1920, 3)
        with pytest.raises(UserError, match="65500 x 65500 pixels are more than the limit"):
            read_image(folder / "jpeg_header_65500.jpg")


def png_head(width: int, height: int) -> bytes:
    """Whole PNG file that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def claims(form: str, width: int, height: int) -> bytes:
    """Small file that claims a large picture."""
    if form == "png":
        return png_head(width, height)
    data = bytearray(encoded(NOISE, form))
    if form == "jpg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif form == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    elif form == "webp":
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


class TestLimit:
    @pytest.mark.parametrize("form", ["png", "jpg", "bmp", "gif"])
    def test_a_large_picture_is_refused_by_its_head(self, tmp_path, decoder, form):
        path = tmp_path / f"a.{form}"
        path.write_bytes(claims(form, 20_000, 20_000))
        for function in (read_image, image_size):
            with pytest.raises(
                UserError, match=r"20000 x 20000 pixels are more than the limit of 178956970\. Raise"
            ):
                function(path)

    def test_webp_is_refused_too(self, decoder):
        refused(claims("webp", 16_000, 16_000), "16000 x 16000 pixels")

    @pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "tif", "bmp"])
    def test_the_limit_can_be_changed(self, limit, decoder, form):
        data = encoded(NOISE, form)
        set_max_pixels(96 * 128)
        read(data)
        set_max_pixels(96 * 128 - 1)
        refused(data, "128 x 96 pixels are more than the limit of 12287")

    def test_it_may_be_raised_above_pillows(self, limit, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        set_max_pixels(10**6)
        for form in ("jpg", "png", "webp", "gif", "tif"):
            assert read(encoded(NOISE, form)).shape == (96, 128, 3)

    def test_the_environment_sets_it(self, limit, monkeypatch):
        assert max_pixels() == MAX_PIXELS
        monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "5")
        assert max_pixels() == 5
        monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "many")
        with pytest.raises(
            UserError, match="MASKRCNN_MAX_PIXELS: expected a whole number from 1, got 'many'"
        ):
            max_pixels()

    @pytest.mark.parametrize("count", [0, -5, 1.5, "9", True])
    def test_a_limit_is_a_number(self, count):
        with pytest.raises(UserError, match="max_pixels: expected"):
            set_max_pixels(count)


class TestConversion:
    @pytest.mark.parametrize("form", ["webp", "png", "gif"])
    def test_only_the_first_frame_is_decoded(self, form, monkeypatch):
        """torchcodec would decode them all: it is not asked."""
        monkeypatch.setattr(image_io, "_torchcodec_decoder", lambda: pytest.fail)
        frames, file = [NOISE, SMOOTH, NOISE, SMOOTH], io.BytesIO()
        frames[0].save(file, form.upper(), save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(read(file.getvalue()).astype(int) - np.asarray(NOISE)).mean() < 40

    def test_no_16_bit_picture_goes_through_torchcodec(self, monkeypatch):
        monkeypatch.setattr(image_io, "_torchcodec_decoder", lambda: pytest.fail)
        file, values = io.BytesIO(), np.arange(96 * 128, dtype=np.uint16).reshape(96, 128) * 5
        Image.fromarray(values).save(file, "PNG")
        assert np.array_equal(read(file.getvalue())[..., 1], np.rint(values / 257))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
    @pytest.mark.parametrize("orientation", [1, 6, 8, 5])
    def test_bands_join_without_a_seam(self, mode, orientation, monkeypatch):
        picture = SMOOTH.convert("L").convert("I") if mode.startswith("I") else SMOOTH.convert(mode)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 200)
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        picture.save(file, "TIFF", exif=exif)
        whole = read(file.getvalue())
        monkeypatch.setattr(image_io, "_BAND", 300)
        assert np.array_equal(read(file.getvalue()), whole)
        assert whole.shape == ((128, 96, 3) if orientation >= 5 else (96, 128, 3))

    def test_a_postscript_file_is_a_program_and_not_run(self):
        refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image")


class TestSources:
    def test_open_files_are_read(self, tmp_path):
        path = tmp_path / "a.png"
        NOISE.save(path)
        with open(path, "rb") as file:
            assert np.array_equal(read_image(file), np.asarray(NOISE))
            assert not file.closed

    def test_what_is_no_picture_file_is_named(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("text")
        with open(path) as file, pytest.raises(UserError, match=r"a\.txt: .*opened as text"):
            read_image(file)  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=r"the open file: .* the file is empty"):
            read_image(io.BytesIO())
        with pytest.raises(UserError, match="/dev/null: cannot read the image: it is no file"):
            read_image("/dev/null")
        with pytest.raises(UserError, match="null"):
            read_image("a\0b.png")


def test_200_mutated_files_raise_nothing_else_and_take_little_memory():
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.mutate_pictures", "--count", "220", "--seed", "3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused") == len(FORMS)
    grown = int(done.stdout.split("memory grew by ")[1].split()[0])
    assert grown < 300, done.stdout
