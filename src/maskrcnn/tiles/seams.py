"""Objects put together from what overlapping tiles saw of them.

Two tiles that overlap saw the same pixels there. What they found is one object if it is of one class and the masks
agree on these pixels. A piece that reaches an inner edge of its tile is cut, any other is whole. Then:

- of two whole pieces the better stays;
- a cut piece beside a whole one of the same object goes;
- cut pieces that are left are joined, across any number of tiles, and so are pieces of which one seems whole, if they
  agree so well that they must be parts of an object that another one hides.

What went joins nothing: in a crowd a network has several opinions of a place, and a poor one that agrees with two good
ones would make one object of them. The result does not depend on the order of the tiles: pieces are sorted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn.masks.rle import bitmap_runs

EDGE = 4  # pixels: what ends this close to the edge of a tile is cut by it, for masks are not exact
AGREE = 0.5  # intersection over union of two masks, on the pixels that both tiles saw
SURE = 0.9  # the same where one piece seems whole and yet is to be joined: it was parted, not cut


@dataclass(slots=True, frozen=True)
class Tile:
    """A window of the picture, in its pixels, ends excluded."""

    x0: int
    y0: int
    x1: int
    y1: int

    def common(self, other: Tile) -> Tile | None:
        """Window of the pixels in both tiles, or None."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Tile(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(slots=True, eq=False)
class Piece:
    """One tile's view of an object: its mask as packed bits of the crop (h, w) at (x, y) in the picture."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    origin: tuple[int, int]
    shape: tuple[int, int]
    bits: np.ndarray
    tile: int

    def within(self, zone: Tile) -> np.ndarray:
        """Mask (h, w) bool on the pixels of `zone`."""
        (x, y), (h, w) = self.origin, self.shape
        result = np.zeros((zone.y1 - zone.y0, zone.x1 - zone.x0), bool)
        a, b, c, d = max(y, zone.y0), min(y + h, zone.y1), max(x, zone.x0), min(x + w, zone.x1)
        if a < b and c < d:
            result[a - zone.y0 : b - zone.y0, c - zone.x0 : d - zone.x0] = self.mask()[
                a - y : b - y, c - x : d - x
            ]
        return result

    def mask(self) -> np.ndarray:
        """Mask (h, w) bool of the crop."""
        h, w = self.shape
        return np.unpackbits(self.bits, count=h * w).reshape(h, w).view(bool)

    def is_cut(self, tile: Tile, size: tuple[int, int]) -> bool:
        """Return True if the mask reaches an edge of its tile that is not the picture's."""
        (x, y), (h, w) = self.origin, self.shape
        return (
            (tile.x0 > 0 and x < tile.x0 + EDGE)
            or (tile.y0 > 0 and y < tile.y0 + EDGE)
            or (tile.x1 < size[1] and x + w > tile.x1 - EDGE)
            or (tile.y1 < size[0] and y + h > tile.y1 - EDGE)
        )


def merge(pieces: Sequence[Piece], tiles: Sequence[Tile], size: tuple[int, int]) -> list[list[Piece]]:
    """Group the pieces that are one object, best object first; what another tile saw better is left out."""
    pieces = sorted(pieces, key=lambda p: (-p.score, p.tile, p.origin, p.shape, p.label))
    cut = [p.is_cut(tiles[p.tile], size) for p in pieces]
    pairs = sorted(_same(pieces, cut, tiles))
    gone = np.zeros(len(pieces), bool)
    parent = list(range(len(pieces)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    # The whole ones first: a cut piece goes only for one that stays. What goes joins nothing.
    for with_cut in (False, True):
        for i, j, explained in pairs:  # i is the better, by score
            if explained and (cut[i] or cut[j]) == with_cut:
                stays, goes = (j, i) if cut[i] else (i, j)
                if not gone[stays]:
                    gone[goes] = True
    for i, j, explained in pairs:
        if not explained and not gone[i] and not gone[j]:
            first, second = sorted((root(i), root(j)))
            parent[second] = first
    groups: dict[int, list[Piece]] = {}
    for i, piece in enumerate(pieces):
        if not gone[i]:
            groups.setdefault(root(i), []).append(piece)
    return sorted(groups.values(), key=lambda group: -group[0].score)


def joined_runs(group: Sequence[Piece], height: int) -> tuple[np.ndarray, np.ndarray]:
    """Foreground runs (starts, ends) of the union of pieces, in a picture `height` high, without a bitmap of it."""
    runs = [bitmap_runs(p.mask(), p.origin, height) for p in group]
    if len(runs) == 1:
        return runs[0]
    starts, ends = (np.concatenate(part) for part in zip(*runs, strict=True))
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate([[True], starts[1:] > ends[:-1]])
    return starts[first], ends[np.concatenate([first[1:], [True]])]


def _same(
    pieces: Sequence[Piece], cut: Sequence[bool], tiles: Sequence[Tile]
) -> Iterator[tuple[int, int, bool]]:
    """Yield the pairs of pieces that are one object seen from two tiles: two numbers, the smaller first, and whether
    one explains the other, which then adds nothing.
    """
    of_tile: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        of_tile.setdefault(piece.tile, []).append(i)
    windows = np.array(
        [[p.origin[0], p.origin[1], p.origin[0] + p.shape[1], p.origin[1] + p.shape[0]] for p in pieces]
    )
    labels = np.array([p.label for p in pieces])
    for a, b in _neighbours(sorted(of_tile), tiles):
        zone = tiles[a].common(tiles[b])
        assert zone is not None
        ours, theirs = (_touching(np.array(of_tile[t]), windows, zone) for t in (a, b))
        wa, wb = windows[ours][:, None], windows[theirs][None]
        meet = (np.minimum(wa[..., 2:], wb[..., 2:]) > np.maximum(wa[..., :2], wb[..., :2])).all(-1)
        meet &= labels[ours][:, None] == labels[theirs][None]
        for m, n in np.argwhere(meet):
            i, j = int(ours[m]), int(theirs[n])
            explained = _explains(pieces[i], pieces[j], cut[i], cut[j], zone)
            if explained is not None:
                yield min(i, j), max(i, j), explained


def _explains(a: Piece, b: Piece, a_cut: bool, b_cut: bool, zone: Tile) -> bool | None:
    """Return True if one piece is all there is of the other, False if they are parts, None if they are two objects."""
    ours, theirs = a.within(zone), b.within(zone)
    both = int((ours & theirs).sum())
    if not both:
        return None
    agree = both / int((ours | theirs).sum())
    if a_cut and b_cut:
        return False if agree >= AGREE else None
    if not a_cut and not b_cut:
        explained = both >= AGREE * (int(a.mask().sum()) + int(b.mask().sum()) - both)
    else:
        part, seen = (a, ours) if a_cut else (b, theirs)
        size = int(part.mask().sum())
        # Not one that goes on where the other's tile does not reach.
        explained = both >= AGREE * size and (agree < SURE or int(seen.sum()) >= SURE * size)
    if explained:
        return True
    # What seems whole is a part, too, when something in front of the object parts it. Then what both tiles have seen of
    # it is the same; two opinions of one place, as a crowd gives them, are no parts.
    return False if agree >= SURE else None


def _touching(numbers: np.ndarray, windows: np.ndarray, zone: Tile) -> np.ndarray:
    w = windows[numbers]
    return numbers[(w[:, 0] < zone.x1) & (w[:, 2] > zone.x0) & (w[:, 1] < zone.y1) & (w[:, 3] > zone.y0)]


def _neighbours(used: Sequence[int], tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of tiles in `used` that overlap. Tiles lie in rows: the search ends below the first one."""
    for k, a in enumerate(used):
        for b in used[k + 1 :]:
            if tiles[b].y0 >= tiles[a].y1:
                break
            if tiles[a].common(tiles[b]):
                yield a, b
