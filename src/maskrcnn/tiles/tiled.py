"""Prediction on pictures of any size, tile by tile: windows are read, what a seam cuts is put together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskrcnn.errors import UserError, check_number
from maskrcnn.files import atomic_path, write_atomic
from maskrcnn.interchange import coco_results
from maskrcnn.masks.rle import Runs, write_counts
from maskrcnn.tiles.seams import EDGE, Pieces, Tile, joined_runs, merge
from maskrcnn.tiles.windows import Windows, open_windows

if TYPE_CHECKING:
    from maskrcnn.structures import Instances

_SETTINGS = "tiles.json"
_FIELDS = [field.name for field in fields(Pieces)]  # other ones are of another version


class Finder(Protocol):
    """Model, or anything else that finds the objects of a tile."""

    def predict(self, images: Any, /) -> Instances: ...


@dataclass(slots=True, eq=False)
class TiledInstances:
    """Detections of a large picture, best first, in its own pixels; masks are RLE, for no bitmap of it would fit.

    boxes: (N, 4) float64; scores: (N,) float64; labels: (N,) int64; counts: N, the compressed counts of COCO's RLE.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    counts: list[str]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rles(self) -> list[dict[str, Any]]:
        """Masks as COCO's RLE: {"size": [H, W], "counts": str} each."""
        return [self.rle(i) for i in range(len(self))]

    def rle(self, i: int) -> dict[str, Any]:
        """One mask as COCO's RLE."""
        return {"size": list(self.image_size), "counts": self.counts[i]}

    def to_coco(self, image_id: int | str = 0, category_ids: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Convert to COCO results: see `Instances.to_coco`."""
        scores, labels = self.scores.tolist(), self.labels.tolist()
        return coco_results(self.boxes, scores, labels, self.rles, None, image_id, category_ids)


def predict_tiled(
    model: Finder,
    source: str | Path | np.ndarray,
    tile: int = 1024,
    overlap: int = 128,
    *,
    level: int = 0,
    keep: Path | None = None,
    settings: Any = None,
    progress: Callable[[int, int], object] | None = None,
) -> TiledInstances:
    """Detect the objects of a picture of any size, tile by tile.

    Objects up to `overlap` pixels are seen whole by some tile; larger ones are put together from their pieces, by
    their masks (see `tiles.seams`). All tiles have one size, so that the network sees all at one scale.

    source: a path, or an (H, W, 3) uint8 RGB array, which may be memory-mapped; see `tiles.windows`.
    level: of a pyramid, 0 the largest; what is found is in the pixels of the level. Where the picture has no data
        nothing is found.
    keep: folder for what is found, tile by tile. With the same picture, tile, overlap and `settings` what is there
    already is used; what was found with others is removed. Yours to delete when the result is safe.
    progress: called with the number of tiles that are done, and of all.

    Raises:
        UserError: the picture or a window cannot be read, an overlap below 16 or above half the tile, a model without
            masks or with key points.
    """
    tile = check_number(tile, "predict_tiled: tile", 4 * EDGE * 2, whole=True)
    check_overlap(tile, overlap)
    picture = open_windows(source, level)
    tiles = tiles_of(picture.size, tile, overlap)
    about = [_identity(source), level, picture.size, tile, overlap, settings]
    store = None if keep is None else _Store(keep, about)
    seen: list[Pieces] = []
    for k, window in enumerate(tiles):
        if store is None:
            seen.append(_look(model, picture, window, k))
        elif not store.has(k):
            store.write(k, _look(model, picture, window, k))
        if progress:
            progress(k + 1, len(tiles))
    # Small arrays that stay between the network's large ones would let the heap grow: what is on the disk is read last.
    pieces = Pieces.joined(seen if store is None else [store.read(k) for k in range(len(tiles))])
    seen.clear()
    return _together(pieces, tiles, picture.size)


def usual_overlap(tile: int) -> int:
    """Overlap of tiles where none is asked for: an eighth, or the least there is."""
    return max(4 * EDGE, tile // 8)


def check_overlap(tile: int, overlap: int) -> None:
    """Make sure that neighbouring tiles share enough to compare objects, and at most half.

    Raises:
        UserError: fewer than 16 pixels, or more than half the tile.
    """
    if isinstance(overlap, bool) or not isinstance(overlap, int) or not 4 * EDGE <= overlap <= tile // 2:
        raise UserError(
            f"overlap: expected {4 * EDGE} to {tile // 2} pixels, half the tile of {tile}, got {overlap}. "
            "Take the size of a usual object."
        )


def tiles_of(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Cover a picture (H, W) with tiles of one size, row by row; the last ones are moved inwards, not cut."""

    def starts(length: int) -> list[int]:
        if length <= tile:
            return [0]
        return [*range(0, length - tile, tile - overlap), length - tile]

    height, width = size
    return [
        Tile(x, y, min(x + tile, width), min(y + tile, height)) for y in starts(height) for x in starts(width)
    ]


def _look(model: Finder, picture: Windows, window: Tile, number: int) -> Pieces:
    """Find the pieces of objects in a tile, of which only pixels with data count."""
    place = (window.x0, window.y0, window.x1, window.y1)
    missing = picture.missing(*place)
    if missing is not None and missing.all():
        return Pieces.of_tile(number, [])
    instances = model.predict(picture.read(*place)).to("cpu")
    if instances.masks is None:
        raise UserError(
            "predict_tiled: expected a model with masks, got one without: they join what seams cut."
        )
    if instances.keypoints is not None:
        raise UserError(
            "predict_tiled: expected a model without key points, got one with: seams cut them off."
        )
    found = []
    rows = zip(instances.boxes.tolist(), instances.scores.tolist(), instances.labels.tolist(), strict=True)
    for i, (box, score, label) in enumerate(rows):
        crop, (x, y) = instances.masks.crop(i)
        is_less = False
        if missing is not None:
            hidden = missing[y : y + crop.shape[0], x : x + crop.shape[1]]
            is_less = bool((crop & hidden).any())
            crop = crop & ~hidden
        down, across = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
        if not len(down):
            continue
        crop = crop[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        x, y = int(x + across[0]), int(y + down[0])
        if is_less:  # the box was of more than this
            box = (x, y, x + crop.shape[1], y + crop.shape[0])
        corners = (box[0] + window.x0, box[1] + window.y0, box[2] + window.x0, box[3] + window.y0)
        found.append((corners, score, label, crop, (x + window.x0, y + window.y0)))
    return Pieces.of_tile(number, found)


def _together(pieces: Pieces, tiles: list[Tile], size: tuple[int, int]) -> TiledInstances:
    height, width = size
    groups = merge(pieces, tiles, size)
    best = [group[0] for group in groups]
    boxes = pieces.boxes[best]
    for i, group in enumerate(groups):
        if len(group) > 1:
            boxes[i, :2] = pieces.boxes[group, :2].min(0)
            boxes[i, 2:] = pieces.boxes[group, 2:].max(0)
    counts: list[str] = []
    for at in range(0, len(groups), 1024):  # many at a time, but not the runs of all
        runs = [joined_runs(pieces, group, height) for group in groups[at : at + 1024]]
        starts, ends = (np.concatenate(part) for part in zip(*runs, strict=True))
        owner = np.repeat(np.arange(len(runs)), [len(of_one) for of_one, _ in runs])
        counts += write_counts(Runs(starts, ends, owner, len(runs)), height * width)
    return TiledInstances(size, boxes, pieces.scores[best], pieces.labels[best], counts)


def _identity(source: str | Path | np.ndarray) -> Any:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(
            np.ascontiguousarray(source[:: max(1, len(source) // 64)]).tobytes()
        ).hexdigest()
    about = Path(source).stat()
    return [str(Path(source).resolve()), about.st_size, about.st_mtime_ns]


class _Store:
    """Files of the pieces in the tiles that are done, one a tile, whole or absent."""

    def __init__(self, folder: Path, settings: Any) -> None:
        self.folder = folder
        wanted = json.dumps([_FIELDS, settings])
        mark = folder / _SETTINGS
        if mark.is_file() and mark.read_text() != wanted:
            shutil.rmtree(folder)
        write_atomic(mark, wanted)

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def read(self, number: int) -> Pieces:
        with np.load(self._file(number)) as arrays:
            return Pieces(**arrays)

    def write(self, number: int, pieces: Pieces) -> None:
        with atomic_path(self._file(number)) as temporary:
            np.savez(temporary, **{name: getattr(pieces, name) for name in _FIELDS})

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.npz"
