"""Image files to pixels.

PNG and WebP are read by torchcodec where it is installed, the rest by Pillow; both give the same pixels.
What a file means is fixed by these rules, whoever decodes:

- The EXIF orientation is applied; an orientation that only XMP states is not.
- Grey becomes three equal channels, a palette its colours, CMYK and others what Pillow's `convert` gives.
- Alpha is dropped, not blended, as Pillow's `convert("RGB")` does and the models were trained.
- 16-bit grey is divided by 257 and rounded, so that 0..65535 maps to 0..255; of 16-bit colours the high byte
  counts. 32-bit integers are taken for 16-bit values, which is what they hold in practice; larger ones and floats
  are refused.
- Of an animation or a multi-page file, the first image; no other is decoded.
- A file that is cut off or damaged is an error, never a half-grey image, as far as its format lets one know: see
  `image_files` for what JPEG, PNG and WebP do.
- A file's head says how large its picture is. One of more pixels than `max_pixels()` is refused before any of it
  is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from maskrcnn.errors import UserError
from maskrcnn.images.checks import (
    PictureFile,
    for_decoding,
    format_of,
    png_file,
    webp_file,
    webp_without_zeros,
)

if TYPE_CHECKING:
    from PIL import Image

EXIF_ORIENTATION = 0x0112
MAX_PIXELS = 178_956_970  # where Pillow refuses a picture by itself; 512 MiB of RGB
MAX_PIXELS_VARIABLE = "MASKRCNN_MAX_PIXELS"  # in the environment, so that processes for loading have it too

# A PostScript file is a program, icon files hold pictures of other sizes than they say, and the rest needs Windows.
_REFUSED_FORMATS = {"EPS", "ICNS", "ICO", "WMF"}
_BAND = 2**18  # pixels that are converted at a time


class PictureTooLargeError(UserError):
    """A picture of more pixels than `max_pixels()`."""


class _TooManyPixelsError(ValueError):
    """Number of pixels that a file's head tells, beyond the limit."""


def read_image(source: str | Path | IO[bytes]) -> np.ndarray:
    """Read the picture in a file, (H, W, 3) uint8 RGB, by the rules at the head of this module.

    source: a path, or a file opened for reading bytes, which is read from where it stands.

    Raises:
        UserError: the file is missing, unreadable, corrupt or too large; the message is one line that names it.
    """
    try:
        with _opened(source) as file:
            kind = _format(file)
            if kind in ("png", "webp"):
                return _read_png_or_webp(_read_bytes(file), kind)
            return _pixels(_whole_picture(file, kind))
    except Exception as e:  # Pillow's plug-ins raise nearly anything on a corrupt file
        raise _unreadable(source, e) from None


@contextlib.contextmanager
def stored_picture(source: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Pillow image of a file, with its values as they are stored: for pictures of labels and masks.

    It is refused as `read_image` refuses it, what is raised while it is used too.

    Raises:
        UserError: the file is missing, unreadable, corrupt or too large; the message is one line that names it.
    """
    try:
        with _opened(source) as file, _whole_picture(file, _format(file)) as picture:
            yield picture
    except Exception as e:
        raise _unreadable(source, e) from None


def image_size(source: str | Path | IO[bytes]) -> tuple[int, int]:
    """Read the (H, W) of the picture as `read_image` returns it, from the file's header: pixels are not decoded.

    Raises:
        UserError: the file is missing, its header cannot be read, or the picture is too large.
    """
    try:
        with _opened(source) as file, _open(file) as picture:
            width, height = picture.size
            turned = _orientation(picture) >= 5
    except Exception as e:
        raise _unreadable(source, e) from None
    return (width, height) if turned else (height, width)


def image_orientation(path: str | Path) -> int:
    """Read the EXIF orientation of an image file, 1 to 8; 1, upright, where none can be read."""
    try:
        with _opened(path) as file, _open(file) as picture:
            return _orientation(picture)
    except Exception:  # `image_size` says what is wrong with a file
        return 1


def pillow_pixels(picture: Image.Image) -> np.ndarray:
    """Convert a Pillow image to (H, W, 3) uint8 RGB, its pixels as they are: no orientation is applied to them.

    Raises:
        UserError: they cannot be decoded, or are floats or large integers.
    """
    try:
        return _pixels(picture, upright=False)
    except Exception as e:
        raise _unreadable("the Pillow image", e) from None


def max_pixels() -> int:
    """Largest number of pixels that a picture in a file may have: MASKRCNN_MAX_PIXELS, by default 178,956,970.

    Raises:
        UserError: the variable is no whole number from 1.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise UserError(f"{MAX_PIXELS_VARIABLE}: expected a whole number from 1, got {text!r}.")
    return int(text)


def set_max_pixels(count: int | None) -> None:
    """Change the limit of `max_pixels` in this process and those it starts; None: to what it is by default."""
    if count is None:
        os.environ.pop(MAX_PIXELS_VARIABLE, None)
        return
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 10**18:
        raise UserError(f"max_pixels: expected a whole number from 1, got {count!r}.")
    os.environ[MAX_PIXELS_VARIABLE] = str(count)


@cache
def _torchcodec_decoder() -> Callable[[np.ndarray], np.ndarray] | None:
    """torchcodec's decoder of still images, encoded (N,) uint8 to (3, H, W); None where it is absent, too old or cannot
    be loaded.
    """
    try:
        import torch
        from torchcodec.decoders import decode_image  # pyright: ignore
    except (ImportError, OSError, RuntimeError):  # its shared libraries may not fit this PyTorch
        return None
    return lambda encoded: decode_image(torch.from_numpy(encoded)).numpy()


def _opened(source: str | Path | IO[bytes]) -> IO[bytes]:
    if not isinstance(source, str | Path):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError("it is opened as text; open it with 'rb'")
        return io.BytesIO(content)
    file = open(source, "rb", opener=_open_at_once)  # noqa: SIM115 (the caller's `with` closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would wait


def _read_bytes(file: IO[bytes]) -> np.ndarray:
    """Read all of a file, (N,) uint8, which Torch's decoders take as it is."""
    size = file.seek(0, os.SEEK_END)
    if size > 8 * max_pixels() + 2**26:
        raise ValueError(f"a file of {size} bytes is larger than any picture of {max_pixels()} pixels")
    file.seek(0)
    encoded = np.empty(size, np.uint8)
    return encoded[: file.readinto(encoded)]  # pyright: ignore[reportAttributeAccessIssue]


def _format(file: IO[bytes]) -> Literal["jpeg", "png", "webp", "other"]:
    """The format by the file's first bytes, which are read again by what comes next."""
    head = file.read(12)
    if not head:
        raise ValueError("the file is empty")
    file.seek(-len(head), os.SEEK_CUR)
    return format_of(head)


def _whole_picture(file: IO[bytes], kind: Literal["jpeg", "png", "webp", "other"]) -> Image.Image:
    """Pillow image of a file that is whole, as far as its format lets one know; not decoded yet."""
    if kind == "other":
        return _open(file)
    encoded = _read_bytes(file).data
    if kind == "jpeg":
        return _open(io.BytesIO(for_decoding(encoded)), "JPEG")
    _checked_head(encoded, kind)
    return _open(io.BytesIO(encoded), kind.upper())


def _checked_head(encoded: memoryview, kind: Literal["png", "webp"]) -> PictureFile:
    """Head of a PNG or WebP file that is whole and not too large."""
    head = (png_file if kind == "png" else webp_file)(encoded)
    _check_size(*head.size)
    if kind == "webp" and not head.animated:
        _check_zeros(encoded)
    return head


def _read_png_or_webp(encoded: np.ndarray, kind: Literal["png", "webp"]) -> np.ndarray:
    header = _checked_head(encoded.data, kind)
    decode = _torchcodec_decoder() if "torch" in sys.modules else None  # never torch for this alone
    # torchcodec decodes every frame of an animation, and goes through float32 from 16 bits.
    if decode is not None and not header.animated and not header.deep:
        try:
            pixels = decode(encoded)
        except (RuntimeError, ValueError):
            pass  # Pillow has the last word, and the clearer message
        else:
            if pixels.ndim == 3:
                return np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return _pixels(_open(io.BytesIO(encoded.data), kind.upper()))


def _check_zeros(encoded: memoryview) -> None:
    shorter = webp_without_zeros(encoded)
    if shorter is not None:
        try:
            _open(io.BytesIO(shorter), "WEBP").load()
        except (OSError, ValueError):
            return
        raise ValueError(
            "it ends in zeros that are no part of the picture, as a file that was not written whole"
        )


def _open(file: IO[bytes], only: str = "") -> Image.Image:
    """Open an image by `PIL.Image.open` with our limit of pixels instead of Pillow's, which warns before it refuses."""
    from PIL import Image, JpegImagePlugin, UnidentifiedImageError

    Image.init()
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # some of its formats look at this themselves
    start = file.tell()
    prefix = file.read(16)
    for name in [only] if only else Image.ID:
        make, accepts = Image.OPEN[name]
        accepted = name not in _REFUSED_FORMATS and (accepts is None or accepts(prefix))
        if accepted is not True and not (accepted and not isinstance(accepted, str)):
            continue
        file.seek(start)
        if name == "JPEG":  # its factory looks for further pictures in the file
            make = JpegImagePlugin.JpegImageFile
        try:
            picture = make(file, "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as e:
            if only:
                raise ValueError(str(e) or type(e).__name__) from None
            continue
        _check_size(picture.size[1], picture.size[0])
        return picture
    raise UnidentifiedImageError


def _check_size(height: int, width: int) -> None:
    if height * width > max_pixels():
        raise _TooManyPixelsError(
            f"its {width} x {height} pixels are more than the limit of {max_pixels()}. Raise it with --max-pixels "
            f"or {MAX_PIXELS_VARIABLE} if you trust the file"
        )


def _pixels(picture: Image.Image, upright: bool = True) -> np.ndarray:
    """Decode a Pillow image, band by band, so that only Pillow's form and the result exist as a whole."""
    orientation = _orientation(picture) if upright else 1
    if picture.mode == "F":
        raise ValueError("its pixels are floats; save it with 8 or 16 bits")
    picture.load()
    width, height = picture.size
    out = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = _upright(out, {6: 8, 8: 6}.get(orientation, orientation))  # `out` as it lies in the file
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        stored[top:bottom] = _to_rgb(picture.crop((0, top, width, bottom)))
    return out


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """A small Pillow image as an array that broadcasts to (H, W, 3) uint8."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels exceed 16 bits; save it with 8 or 16 bits")
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None]
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))[:, :, None]
    picture.info.pop("transparency", None)  # dropped like an alpha channel; `convert` would warn of it
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1..8. Not `getexif()`: that decodes a whole PNG, and reads XMP too."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))
        orientation = exif.get(EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata do not make the picture unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 mirrors, 3 turns by 180, 4 does both; 5..8 are these transposed."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _unreadable(source: str | Path | IO[bytes], error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    where = source if isinstance(source, str | Path) else getattr(source, "name", "the open file")
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif type(error).__name__ == "UnidentifiedImageError":
        why = "not an image, or of an unknown format"
    else:
        why = " ".join(str(error).split()) or type(error).__name__
    kind = PictureTooLargeError if isinstance(error, _TooManyPixelsError) else UserError
    return kind(f"{where}: cannot read the image: {why.rstrip('.')}.")
