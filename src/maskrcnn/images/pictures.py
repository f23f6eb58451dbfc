"""Pictures in every form that Python users have them: a path, an open file, a Pillow image, an array."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.errors import UserError
from maskrcnn.images.bands import BandsFile, check_bands, read_input, stretched
from maskrcnn.images.read import pillow_pixels, read_image

if TYPE_CHECKING:
    from PIL import Image

    Picture = str | Path | np.ndarray | Image.Image | IO[bytes] | BandsFile
else:
    Picture = Any


def is_picture(given: Any) -> bool:
    """Return True if `given` is of a type that `pixels_of` takes; its content is not looked at."""
    return isinstance(given, str | Path | np.ndarray) or _is_pillow(given) or hasattr(given, "read")


def pixels_of(picture: Picture, where: str) -> np.ndarray:
    """Read a picture's pixels, (H, W, 3) uint8 RGB: of files by the rules of `image_io`, of a Pillow image as they
    are.

    Raises:
        UserError: a file that cannot be read, an array of another shape or type, anything else; `where` leads.
    """
    if isinstance(picture, np.ndarray):
        return checked_pixels(picture, where)
    if _is_pillow(picture):
        return pillow_pixels(picture)
    if isinstance(picture, str | Path):
        return read_image(picture)
    if isinstance(picture, BandsFile):
        return picture.pixels()
    if hasattr(picture, "read"):
        return read_image(cast("IO[bytes]", picture))
    advice = ""
    if hasattr(picture, "permute"):
        advice = " Give tensor.permute(1, 2, 0).numpy()."
    elif isinstance(picture, bytes | bytearray | memoryview):
        advice = " Give io.BytesIO(...) for the bytes of a file."
    what = "a path, an open file, a Pillow image, an (H, W, 3) uint8 RGB array or a list of these"
    raise UserError(f"{where}: expected {what}, got {type(picture).__name__}.{advice}")


def input_of(picture: Picture, where: str, config: InputConfig) -> np.ndarray:
    """Read a picture as a model takes it: as `pixels_of`, or bands (H, W, C) float32, stretched to 0..255.

    Bands come from a path, an open file or an array (H, W, C) of the model's bands and depth.

    Raises:
        UserError: a file that cannot be read, other bands than the model's, anything else; `where` leads.
    """
    if not config.channels:
        return pixels_of(picture, where)
    if isinstance(picture, np.ndarray):
        check_bands(picture, config, where)
        return stretched(picture, config)
    if isinstance(picture, str | Path) or hasattr(picture, "read"):
        return read_input(cast("str | Path | IO[bytes]", picture), config)
    what = f"a path, an open file or an (H, W, {config.channels}) array"
    raise UserError(f"{where}: expected {what} for a model of bands, got {type(picture).__name__}.")


def checked_pixels(pixels: np.ndarray, where: str) -> np.ndarray:
    """Return `pixels` if they are (H, W, 3) uint8 and not empty; else raise a `UserError`."""
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"{where}: expected an (H, W, 3) uint8 RGB array, got {type(pixels).__name__}.")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise UserError(
            f"{where}: expected an (H, W, 3) uint8 RGB array, got {pixels.shape} {pixels.dtype}. Convert it first."
        )
    return pixels


def _is_pillow(given: Any) -> TypeGuard[Image.Image]:
    pillow = sys.modules.get("PIL.Image")  # whoever has such an image has imported it
    return pillow is not None and isinstance(given, pillow.Image)
