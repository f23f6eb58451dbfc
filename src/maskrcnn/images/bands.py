"""Files of bands to pixels in their own depth: any number of bands of uint8, uint16 or float32.

A model with `model.input.channels` takes these in place of colour pictures. What a file means is fixed by these rules:

- NPY holds (H, W), (H, W, C) or (C, H, W), where C is the model's number of bands; of two readings the first counts.
- TIFF is read by tifffile (extra `micro`): the first series, whose bands are samples, planes or pages.
- Other pictures are grey or colour as Pillow stores them; colour PNG of 16 bits, of which Pillow keeps 8, is refused.
- Of several files an image (`model.input.band_files`) the bands follow one another in the order of the patterns.
- Bands are in the file's order, and a picture is not turned by EXIF.
- `stretched` maps each band's range to 0..255 in float32, so that no depth is lost; what lies outside is cut, and
  what is no number becomes the lower end.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.errors import UserError, one_line
from maskrcnn.images.read import max_pixels, read_image, stored_picture

P = TypeVar("P", bound=str | Path)

DEPTHS = ("uint8", "uint16", "float32")
_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}  # where none is given
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG"
_MODES = ("L", "LA", "I;16", "I;16L", "I;16B", "I;16N", "F", "RGB", "RGBA", "CMYK")


def read_input(source: str | Path | IO[bytes], config: InputConfig) -> np.ndarray:
    """Read a picture as the model takes it: (H, W, 3) uint8 RGB, or of bands (H, W, C) float32, stretched to 0..255.

    Raises:
        UserError: it cannot be read, or has other bands than the model; the message is one line that names it.
    """
    return stretched(read_bands(source, config), config) if config.channels else read_image(source)


def read_bands(source: str | Path | IO[bytes], config: InputConfig) -> np.ndarray:
    """Read the bands of one image, (H, W, C) uint8, uint16 or float32, as the file has them.

    Raises:
        UserError: it cannot be read, has another number of bands or another depth than the model, or its files differ.
    """
    if config.band_files and not isinstance(source, str | Path):
        raise UserError(
            "model.input.band_files: expected a path, beside which the other files are, got an open file."
        )
    if not config.band_files:
        bands = _read_file(source, config.channels)
        check_bands(bands, config, _name(source))
        return bands
    assert isinstance(source, str | Path)
    parts: list[np.ndarray] = []
    for path in band_paths(source, config.band_files):
        part = _read_file(path, 1)
        if parts and (part.shape[:2], part.dtype) != (parts[0].shape[:2], parts[0].dtype):
            raise UserError(
                f"{path}: expected {_described(parts[0])} as in {source}, got {_described(part)}. Mend the files."
            )
        parts.append(part)
    bands = np.concatenate(parts, axis=2)
    check_bands(bands, config, str(source))
    return bands


def band_paths(path: str | Path, patterns: tuple[str, ...]) -> list[Path]:
    """Paths of an image's files, whose first one is `path`: what its name has for `*` stands for it in the others'.

    Raises:
        UserError: the name does not fit the first pattern.
    """
    path = Path(path)
    before, after = patterns[0].split("*")
    name = path.name
    if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
        raise UserError(
            f"{path}: expected a name like {patterns[0]} (model.input.band_files), got another. Give the first band's."
        )
    same = name[len(before) : len(name) - len(after)]
    return [path.parent / pattern.replace("*", same) for pattern in patterns]


def check_band_files(config: InputConfig) -> None:
    """Check the patterns of an image's files against the number of bands.

    Raises:
        UserError: there is not one for each band, or a pattern without exactly one `*`.
    """
    patterns = config.band_files
    if patterns and len(patterns) != config.channels:
        raise UserError(
            f"model.input.band_files: expected a name for each band (model.input.channels {config.channels}), "
            f"got {len(patterns)}."
        )
    if any(pattern.count("*") != 1 for pattern in patterns) or any(
        "/" in pattern for pattern in patterns[:1]
    ):
        raise UserError(
            f"model.input.band_files: expected names with one * each, the first without a folder, got {list(patterns)}."
        )


def check_bands(bands: np.ndarray, config: InputConfig, where: str) -> None:
    """Make sure that an array has the model's bands; `where` leads the message.

    Raises:
        UserError: another number of bands, another depth, or no pixels.
    """
    if bands.ndim != 3 or bands.shape[2] != config.channels or 0 in bands.shape:
        raise UserError(
            f"{where}: expected {config.channels} bands (model.input.channels), got an array {bands.shape}. "
            "Choose files or a model of the same bands."
        )
    wanted = (config.depth,) if config.depth else DEPTHS
    if bands.dtype.name not in wanted:
        raise UserError(f"{where}: expected bands of {' or '.join(wanted)}, got {bands.dtype}. Convert it.")


def stretched(bands: np.ndarray, config: InputConfig) -> np.ndarray:
    """Map each band's range (`config.stretch`, else its depth's own) to 0..255: (H, W, C) float32, cut at both ends."""
    ranges = config.stretch or [_RANGES[bands.dtype.name]] * bands.shape[2]
    low, high = np.array(ranges, np.float32).T
    pixels = bands.astype(np.float32)
    pixels -= low
    pixels *= 255 / (high - low)
    np.nan_to_num(pixels, copy=False, nan=0.0)
    return np.clip(pixels, 0, 255, out=pixels)


def shown(pixels: np.ndarray, config: InputConfig) -> np.ndarray:
    """Picture for people of what `stretched` gives: (H, W, 3) uint8 of `config.shown_bands`, one for grey or three.

    Without, the first three bands are red, green and blue; of fewer the first is shown in grey.
    """
    chosen = config.shown_bands or (range(3) if config.channels >= 3 else (0,))
    picture = np.empty((*pixels.shape[:2], 3), np.uint8)
    picture[:] = np.rint(pixels[..., list(chosen)])
    return picture


@dataclass(frozen=True, slots=True)
class BandsFile:
    """Path of an image's bands, with what is needed to show them to people."""

    path: str | Path
    config: InputConfig

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def pixels(self) -> np.ndarray:
        """Read the picture for people, (H, W, 3) uint8 RGB."""
        return shown(read_input(self.path, self.config), self.config)


def refuse_bands(config: InputConfig, where: str) -> None:
    """Refuse a model of bands where only pictures of colours are taken; `where` leads the message.

    Raises:
        UserError: it is one.
    """
    if config.channels:
        raise UserError(
            f"{where}: expected a model of colour pictures, got one of bands (model.input.channels {config.channels})."
        )


def for_people(path: P, config: InputConfig) -> P | BandsFile:
    """Picture of a file for people: the path of colours, a `BandsFile` of bands."""
    return BandsFile(path, config) if config.channels else path


def _read_file(source: str | Path | IO[bytes], channels: int) -> np.ndarray:
    """Bands of one file, (H, W, C) in its own depth and this machine's byte order."""
    try:
        head = _head(source)
        if head.startswith(_NPY):
            bands = _read_npy(source, channels)
        elif head.startswith(_TIFF):
            bands = _read_tiff(source)
        else:
            bands = _read_stored(source, head)
    except UserError:
        raise
    except Exception as e:  # the libraries raise nearly anything on a corrupt file
        why = e.strerror if isinstance(e, OSError) and e.strerror else one_line(str(e)) or type(e).__name__
        raise UserError(f"{_name(source)}: cannot read the bands: {why.rstrip('.')}.") from None
    return bands.astype(bands.dtype.newbyteorder("="), copy=False)


def _head(source: str | Path | IO[bytes]) -> bytes:
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            return file.read(26)
    head = source.read(26)
    source.seek(-len(head), 1)
    return head


def _read_npy(source: str | Path | IO[bytes], channels: int) -> np.ndarray:
    mapped = (
        "r" if isinstance(source, str | Path) else None
    )  # so that a huge one is refused before it is read
    array = np.load(source, mmap_mode=mapped, allow_pickle=False)
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and array.shape[2] != channels and array.shape[0] == channels:
        array = array.transpose(1, 2, 0)
    _check_size(array.shape)
    return np.array(array, order="C")


def _read_tiff(source: str | Path | IO[bytes]) -> np.ndarray:
    if find_spec("tifffile") is None:
        raise UserError(
            f"{_name(source)}: expected tifffile for bands of TIFF, got none. Run: pip install 'maskrcnn[micro]'"
        )
    import tifffile

    with tifffile.TiffFile(source) as file:
        series = file.series[0]
        axes, shape = series.axes, series.shape
        others = [k for k, axis in enumerate(axes) if axis not in "YX"]
        bands = [k for k in others if shape[k] > 1]
        if "Y" not in axes or "X" not in axes or len(bands) > 1:
            raise ValueError(f"expected one axis of bands besides height and width, got {axes} {shape}")
        _check_size((shape[axes.index("Y")], shape[axes.index("X")]))
        array = series.asarray().transpose(*others, axes.index("Y"), axes.index("X"))
    return np.ascontiguousarray(array.reshape(-1, *array.shape[-2:]).transpose(1, 2, 0))


def _read_stored(source: str | Path | IO[bytes], head: bytes) -> np.ndarray:
    deep_colours = head.startswith(_PNG) and head[24] == 16 and head[25] in (2, 4, 6)
    if deep_colours:
        raise ValueError("colour PNG of 16 bits cannot be read in its depth; save it as TIFF or NPY")
    with stored_picture(source) as picture:
        if picture.mode not in _MODES:
            raise ValueError(f"expected grey or colours, got pixels of Pillow's mode {picture.mode}")
        array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[0] * shape[1] > max_pixels():
        raise ValueError(
            f"its {shape[0]} x {shape[1]} pixels are more than the limit of {max_pixels()}. Raise it with --max-pixels"
        )


def _described(bands: np.ndarray) -> str:
    return f"{bands.shape[0]} x {bands.shape[1]} pixels of {bands.dtype}"


def _name(source: str | Path | IO[bytes]) -> str:
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "the open file"))
