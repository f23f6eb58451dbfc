"""Statistics of a data set's bands: what training stretches and normalises by, and what `doctor` tells.

Measured on up to 100 pictures, evenly chosen, and up to 50,000 pixels of each. A band of one value in all of them is
empty; so is, in one picture, a band of one value there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maskrcnn.config import InputConfig
from maskrcnn.data.coco import CocoData
from maskrcnn.errors import UserError
from maskrcnn.images.bands import read_bands, stretched

_PICTURES = 100
_PIXELS = 50_000
# Standard deviation of ImageNet's colours, the mean of the three. What a preset divides it by, it divides bands by.
_IMAGENET_STD = 57.7


@dataclass(frozen=True, slots=True)
class Band:
    """Statistics of a band. low, high: its values at the percentiles; mean, std: of its pixels, stretched to 0..255."""

    depth: str
    smallest: float
    largest: float
    low: float
    high: float
    mean: float
    std: float
    num_empty: int  # pictures in which it has one value
    num_pictures: int

    def line(self) -> str:
        """One line for people."""
        text = f"{self.depth}, {self.smallest:g} to {self.largest:g}"
        if not self.smallest < self.largest:
            return f"{text}: empty, the same value in all pictures"
        text += f", stretched from {self.low:g} to {self.high:g}: mean {self.mean:.1f}, deviation {self.std:.1f} of 255"
        return text + f"; empty in {self.num_empty} of {self.num_pictures} pictures" * bool(self.num_empty)


def measure_bands(data: CocoData, config: InputConfig) -> list[Band]:
    """Measure the bands of a data set's pictures; those of `config.stretch`, where it has some, are kept.

    Raises:
        UserError: a picture cannot be read, or differs from the first or from the model in its bands; there is none.
    """
    if not data.num_images:
        raise UserError(f"{data.json_path}: expected pictures to measure bands on, got none.")
    order = np.unique(
        np.linspace(0, data.num_images - 1, min(_PICTURES, data.num_images)).astype(int)
    ).tolist()
    samples, empty = [], np.zeros(config.channels, int)
    for i in order:
        bands = read_bands(data.image_path(i), config)
        config = replace(config, depth=bands.dtype.name)  # the others are to have the first one's
        pixels = bands.reshape(-1, config.channels)
        empty += (pixels == pixels[0]).all(0)
        samples.append(pixels[:: -(-len(pixels) // _PIXELS)])
    pixels = np.concatenate(samples).astype(np.float32)
    pixels[~np.isfinite(pixels)] = np.nan
    pixels[:, np.isnan(pixels).all(0)] = 0
    ranges = config.stretch or tuple(_range(band, config.stretch_percentiles) for band in pixels.T)
    seen = stretched(pixels[None], replace(config, stretch=ranges))[0].astype(np.float64)
    return [
        Band(
            depth=config.depth,
            smallest=float(np.nanmin(pixels[:, k])),
            largest=float(np.nanmax(pixels[:, k])),
            low=ranges[k][0],
            high=ranges[k][1],
            mean=float(seen[:, k].mean()),
            std=float(seen[:, k].std()),
            num_empty=int(empty[k]),
            num_pictures=len(order),
        )
        for k in range(config.channels)
    ]


def adopt_bands(config: InputConfig, bands: list[Band]) -> None:
    """Put into a preset's input what it lacks for bands: depth, stretch, and a mean and a deviation of each.

    The deviation is one by which normalised bands spread as far as the preset's normalised colours do.
    """
    usual = sum(config.pixel_std) / len(config.pixel_std) / _IMAGENET_STD
    measured = not config.stretch
    config.depth = config.depth or bands[0].depth  # pyright: ignore[reportAttributeAccessIssue]
    config.stretch = tuple((b.low, b.high) for b in bands)
    if measured or len(config.pixel_mean) != config.channels:
        config.pixel_mean = tuple(round(b.mean, 3) for b in bands)
    if measured or len(config.pixel_std) != config.channels:
        config.pixel_std = tuple(round(usual * (b.std or _IMAGENET_STD), 6) for b in bands)


def _range(band: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(x) for x in np.nanpercentile(band, percentiles))
    if low < high:
        return low, high
    low, high = float(np.nanmin(band)), float(np.nanmax(band))  # few pixels differ from the rest
    return (low, high) if low < high else (low, low + 1)
