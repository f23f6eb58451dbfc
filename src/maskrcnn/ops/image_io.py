"""Image files to pixels, and the resize of test time.

Files are read by torchcodec where it is installed and knows the format (JPEG, PNG, WebP), else by Pillow;
both give the same pixels. What a file means is fixed by these rules, whoever decodes:

- The EXIF orientation is applied; an orientation that only XMP states is not.
- Grey becomes three equal channels, a palette its colours, CMYK and others what Pillow's `convert` gives.
- Alpha is dropped, not blended, as Pillow's `convert("RGB")` does and the models were trained.
- 16-bit grey is divided by 257 and rounded, so that 0..65535 maps to 0..255. 32-bit integers are taken
  for 16-bit values, which is what they hold in practice; larger ones and floats are refused.
- Of an animation or a multi-page file, the first image.
- A truncated or corrupt file is an error, never a half-grey image.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from maskrcnn.errors import UserError
from maskrcnn.ops.opencv_resize import resize_bilinear

if TYPE_CHECKING:
    from PIL import Image

EXIF_ORIENTATION = 0x0112
Resize = Literal["pillow", "opencv", "torchvision"]  # as `InputConfig.resize`


def read_image(path: str | Path) -> np.ndarray:
    """The picture in `path`, (H, W, 3) uint8 RGB, by the rules at the head of this module.

    Raises:
        UserError: the file is missing, unreadable or corrupt; the message is one line that names it.
    """
    encoded = _read_bytes(path)
    decode = _torchcodec_decoder()
    if decode is not None and _is_fast_format(encoded):
        try:
            pixels = decode(torch.from_numpy(encoded))
        except (RuntimeError, ValueError):
            pass  # Pillow has the last word, and the clearer message
        else:
            first = pixels if pixels.ndim == 3 else pixels[0]  # animations are (frames, 3, H, W)
            return np.ascontiguousarray(first.permute(1, 2, 0).numpy())
    try:
        return _read_with_pillow(encoded)
    except Exception as e:  # Pillow's plug-ins raise nearly anything on a corrupt file
        raise _unreadable(path, e) from None


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of the picture as `read_image` returns it, from the file's header: pixels are not decoded.

    Raises:
        UserError: the file is missing or its header cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = _orientation(picture) >= 5
    except Exception as e:
        raise _unreadable(path, e) from None
    return (width, height) if turned else (height, width)


def image_orientation(path: str | Path) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1, upright, where none can be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return _orientation(picture)
    except Exception:  # `image_size` says what is wrong with a file
        return 1


def resize_size(
    height: int, width: int, min_size: int, max_size: int, resize: Resize = "pillow"
) -> tuple[int, int]:
    """(H, W) with the shortest side `min_size`, or less where the longest would exceed `max_size`.

    Rounded int(x + 0.5), with x computed as detectron2 does, or for "opencv" as MMDetection does: they can be a
    pixel apart. torchvision rounds down.
    """
    if resize != "pillow":
        scale = min(max_size / max(height, width), min_size / min(height, width))
        half = 0.5 if resize == "opencv" else 0.0
        return max(1, int(height * scale + half)), max(1, int(width * scale + half))
    scale = min_size / min(height, width)
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    longest = max(new_height, new_width)
    if longest > max_size:
        shrink = max_size / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: np.ndarray, size: tuple[int, int], resize: Resize = "pillow") -> np.ndarray:
    """(H, W, 3) uint8 to (*size, 3), by Pillow's antialiased bilinear filter or OpenCV's plain one, both uint8, or by
    torchvision's detectors' plain one, float32.

    The original models were evaluated with one of these on uint8; torchvision's differ by up to 2 levels.
    """
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    if resize == "opencv":
        return resize_bilinear(image, size)
    if resize == "torchvision":
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return pixels[0].permute(1, 2, 0).numpy()
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(resized)


@cache
def _torchcodec_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchcodec's decoder of still images; None where it is absent, too old or cannot be loaded."""
    try:
        from torchcodec.decoders import decode_image  # pyright: ignore
    except (ImportError, OSError, RuntimeError):  # its shared libraries may not fit this PyTorch
        return None
    return decode_image


def _read_bytes(path: str | Path) -> np.ndarray:
    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as e:
        raise _unreadable(path, e) from None
    if encoded.size == 0:
        raise UserError(f"{path}: cannot read the image: the file is empty.")
    return encoded


def _is_fast_format(encoded: np.ndarray) -> bool:
    head = encoded[:12].tobytes()
    is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return is_webp or head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _read_with_pillow(encoded: np.ndarray) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded.data)) as picture:
        orientation = _orientation(picture)
        picture.load()
        return np.array(_upright(_to_rgb(picture), orientation), order="C")  # a copy: Pillow's is read-only


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode == "F":
        raise ValueError("its pixels are floats; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its pixels exceed 16 bits; save it with 8 or 16 bits")
        grey = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    picture.info.pop("transparency", None)  # dropped like an alpha channel; `convert` would warn of it
    return np.asarray(picture.convert("RGB"))


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


def _unreadable(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif type(error).__name__ == "UnidentifiedImageError":
        why = "not an image, or of an unknown format"
    else:
        why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: cannot read the image: {why.rstrip('.')}.")
