"""Pictures with their objects, in the one form that every writer of labels takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskrcnn.masks.outlines import Ring, bridged, parts_of
from maskrcnn.masks.rle import bitmap_runs
from maskrcnn.masks.store import MaskStore, fill_one, read_bitmaps

_NO_BITS = np.zeros(0, np.uint8)


@dataclass(slots=True, eq=False)
class LabelledObject:
    """Object of a picture, drawn or predicted.

    label: 0..K-1; box: x0, y0, x1, y1; segmentation: polygons as rings x, y, x, y, ..., COCO's RLE with its counts, or
    None; score: of a prediction; crowd: a region with many objects; keypoints: flat x, y, v as COCO has them;
    track: the object's number in a film.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: list[Ring] | dict[str, Any] | None
    score: float | None = None
    crowd: bool = False
    keypoints: list[float] | None = None
    track: int | None = None

    def parts(self, tolerance: float = 0.0) -> list[list[Ring]]:
        """Parts of the object, [outline, hole, hole, ...] each: drawn polygons as they are, a mask's outlines.

        tolerance: pixels that a mask's outline may move to have fewer corners.
        """
        if isinstance(self.segmentation, dict):
            crop, origin = self.crop((self.segmentation["size"][0], self.segmentation["size"][1]))
            return parts_of(crop, origin, tolerance)
        return [[ring] for ring in self.segmentation or ()]

    def rings(self, tolerance: float = 0.0) -> list[Ring]:
        """A polygon for each part, with slits to its holes."""
        return [bridged(part) for part in self.parts(tolerance)]

    def ring(self, tolerance: float = 0.0) -> Ring:
        """One polygon for the whole object, with slits between its parts and to its holes; empty without a mask."""
        rings = [ring for part in self.parts(tolerance) for ring in part]
        return bridged(rings) if rings else []

    def crop(self, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """Bitmap (h, w) uint8 of the mask within its own box, and the (x, y) of its first pixel.

        size: (H, W) of the picture. Without a mask, or of an empty one, the bitmap is 0 x 0.
        """
        if isinstance(self.segmentation, dict):
            bits, _, crops = read_bitmaps({0: self.segmentation}, 1)
            x, y, w, h = crops[0].tolist()
            return bits.reshape(w, h).T, (x, y)
        rings = [np.reshape(ring, (-1, 2)) for ring in self.segmentation or ()]
        if not rings:
            return np.zeros((0, 0), np.uint8), (0, 0)
        starts = np.cumsum([0, *map(len, rings)])
        ends = np.array([0, len(rings)])
        store = MaskStore(
            size, np.concatenate(rings), starts, ends, _NO_BITS, np.zeros(2, int), np.zeros((1, 4), int)
        )
        filled, (x, y, _, _) = fill_one(store, range(len(rings)))
        return filled.T, (int(x), int(y))

    def runs(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of the mask's runs in the picture's pixels, column by column."""
        crop, origin = self.crop(size)
        return bitmap_runs(crop, origin, size[0])


@dataclass(slots=True, eq=False)
class LabelledPicture:
    """Picture with its objects.

    path: its file; name: what the labels call it, below the folder of the pictures; size: (H, W);
    error: why it could not be read, of a prediction; image_id: what results call it, by default the file's stem.
    """

    path: Path
    name: str
    size: tuple[int, int]
    objects: Sequence[LabelledObject]
    error: str | None = None
    image_id: str = ""

    def __post_init__(self) -> None:
        self.image_id = self.image_id or self.path.stem


@dataclass(frozen=True, slots=True)
class Job:
    """Facts that a writer needs beside the pictures.

    out: folder of the data set or of the results; class_names: K; category_ids: K of the classes' numbers, for COCO;
    part: "train", "val", "test", or "" of what is not divided; tolerance: see `LabelledObject.parts`;
    keypoint_names, skeleton: as `CocoData` has them; shard: I of N, of predictions; settings: what they were made with;
    crs: "wgs84" or "raster", of GeoJSON, or "" for the first where a picture has one.
    """

    out: Path
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    part: str = ""
    tolerance: float = 0.0
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    shard: tuple[int, int] | None = None
    settings: str = ""
    crs: Literal["", "raster", "wgs84"] = ""

    def name_of(self, label: int) -> str:
        """Name of a class, or its number where it has none."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    def id_of(self, label: int) -> int:
        """Number of a class in COCO's files; 1, 2, ... where the data set has none."""
        return self.category_ids[label] if self.category_ids else label + 1
